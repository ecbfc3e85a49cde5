"""A tiny random model with real verifiers, on which single steps are tried."""

import jax
import pytest

from cipo_jax.config import MeshShape, RandomModel, Verify
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.model.files.load import load_model
from cipo_jax.rollout.judged import Engine
from cipo_jax.text.prompts import Renderer
from cipo_jax.text.tokenizer import byte_tokenizer, eos_ids
from cipo_jax.verify.pool import VerifierPool
from tests.run.one_step import PROMPTS


@pytest.fixture(scope="module")
def policy() -> tuple:
    return load_model(RandomModel(), seed=0)


@pytest.fixture(scope="module")
def engine(policy):
    tokenizer = byte_tokenizer()
    with VerifierPool(Verify(workers=1)) as pool:
        yield Engine(
            arch=policy[1],
            mesh=make_mesh(MeshShape(data=1, fsdp=1), jax.devices()[:1]),
            eos_ids=eos_ids(RandomModel(), tokenizer),
            renderer=Renderer(tokenizer, PROMPTS),
            judge=pool,
            compute_dtype="float32",
        )
