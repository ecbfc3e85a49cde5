"""The mesh, the rules, and the shardings of every preset."""

import dataclasses
import types
import typing
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array
from jax.sharding import PartitionSpec as P
from jaxtyping import Float

from cipo_jax import config
from cipo_jax.mesh.sharding import (
    ACTIVATION_RULES,
    DECODING_RULES,
    PARAM_RULES,
    batch_shardings,
    constrain,
    device_grid,
    letters_of,
    make_mesh,
    num_row_shards,
    shardings_of,
    spec_of,
)
from cipo_jax.model.cache import CompletionCache, PromptCache
from cipo_jax.model.presets import PRESETS
from cipo_jax.model.transformer import abstract
from cipo_jax.records import Rollouts

GOLDEN = Path(__file__).parent / "golden" / "shardings.txt"
MESHES = [
    config.MeshShape(fsdp=8),
    config.MeshShape(data=2, tensor=2),
    config.MeshShape(fsdp=2, tensor=4),
]


def activations(arch) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Letters and shapes of what crosses a layer in training and in decoding, of 8 rows or prompts
    with 4 samples of 16 tokens. The widths that tensor splits follow from the weights."""
    heads, kv_heads, width = arch.num_heads, arch.num_kv_heads, arch.head_dim
    caches = {
        "prompt_cache": PromptCache((8, kv_heads, width, 16), (8, kv_heads, 16, width)),
        "completion_cache": CompletionCache(
            (8, kv_heads, 4, width, 16), (8, kv_heads, 4, 16, width)
        ),
    }
    return {
        "token": ("B T", (8, 16)),
        "stream": ("B T D", (8, 16, arch.model_dim)),
        "queries": ("B T N H", (8, 16, heads, width)),
        "keys": ("B T K H", (8, 16, kv_heads, width)),
        "decoding": ("B D", (32, arch.model_dim)),
        "logits": ("B V", (32, arch.vocab_size)),
        **{
            f"{name}.{field.name}": (letters_of(hints[field.name]), getattr(cache, field.name))
            for name, cache in caches.items()
            for hints in [typing.get_type_hints(type(cache))]
            for field in dataclasses.fields(cache)
        },
    }


def dump() -> str:
    """Shape and spec of every parameter as it is stored, of a layer's parameters while tokens are
    drawn, and of the activations: for each preset on each mesh of eight devices."""
    lines = []

    def add(where, shape, spec):
        axes = ", ".join(
            "+".join((axis,) if isinstance(axis, str) else axis or "-") for axis in spec
        )
        lines.append(f"  {where:26}{shape!s:24}{axes}")

    for name, arch in PRESETS.items():
        params = abstract(arch)
        for sizes in MESHES:
            mesh = make_mesh(sizes)
            lines.append(f"\n{name} on {dict(mesh.shape)}")
            try:
                stored = shardings_of(params, mesh, PARAM_RULES)
            except ValueError as error:
                lines.append(f"  refused: {error}")
                continue
            decoding = shardings_of(params, mesh, DECODING_RULES)
            for prefix, shardings in (("", stored), ("decoding.", decoding)):
                for (path, x), sharding in zip(
                    jax.tree_util.tree_flatten_with_path(params)[0],
                    jax.tree.leaves(shardings),
                    strict=True,
                ):
                    where = jax.tree_util.keystr(path, simple=True, separator=".")
                    add(prefix + where, x.shape, sharding.spec)
            for where, (letters, shape) in activations(arch).items():
                add(where, shape, spec_of(letters, shape, mesh, ACTIVATION_RULES))
    return "\n".join(lines).lstrip() + "\n"


def test_shardings_of_every_preset():
    """To regenerate: python -c "from tests import conftest; from tests.mesh.test_sharding import *;
    GOLDEN.write_text(dump())". Legitimate when a rule or a preset changes on purpose: read the
    difference, for one line that is replicated can be gigabytes on every device."""
    assert dump() == GOLDEN.read_text()


# --- the mesh -----------------------------------------------------------------------------------


def test_fsdp_takes_the_rest():
    mesh = make_mesh(config.MeshShape(data=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "expert": 1, "tensor": 2}
    assert dict(make_mesh(config.MeshShape(), jax.devices()[:1]).shape)["fsdp"] == 1


@pytest.mark.parametrize(
    "sizes", [config.MeshShape(data=3), config.MeshShape(fsdp=4), config.MeshShape(data=16)]
)
def test_a_mesh_that_does_not_fit_the_devices(sizes):
    with pytest.raises(ValueError, match=r"does not make 8 devices.*leave fsdp at -1"):
        make_mesh(sizes)


def slices_of(*indices: int) -> list[types.SimpleNamespace]:
    """Stand-ins for TPU chips: all that the grid is laid out by, where there are no wires."""
    return [
        types.SimpleNamespace(id=i, slice_index=index, platform="cpu", device_kind="cpu")
        for i, index in enumerate(indices)
    ]


def test_slices_split_data_and_nothing_else():
    chips = slices_of(0, 1, 0, 1, 0, 1, 0, 1)
    grid = device_grid(config.MeshShape(data=4, tensor=2, slices=2), chips)
    assert grid.shape == (4, 1, 1, 2)
    # Along data the first half is one slice; along the other axes it never changes.
    slice_of = np.vectorize(lambda chip: chip.slice_index)(grid)
    np.testing.assert_array_equal(slice_of[:, 0, 0, 0], [0, 0, 1, 1])
    assert (slice_of == slice_of[:, :1, :1, :1]).all()


@pytest.mark.parametrize(
    ("sizes", "indices", "message"),
    [
        ({"data": 2}, (0, 0, 1, 1), "mesh.slices is 1, but the devices lie in 2 slices"),
        ({"data": 2, "slices": 2}, (0, 0, 0, 0), "mesh.slices is 2, but the devices lie in 1"),
        ({"data": 2, "slices": 3}, (), "mesh.slices is 3, which does not divide mesh.data 2"),
    ],
    ids=["not-said", "not-there", "uneven"],
)
def test_slices_that_do_not_fit(sizes, indices, message):
    with pytest.raises(ValueError, match=message):
        device_grid(config.MeshShape(**sizes), slices_of(*indices))


# --- records and trees --------------------------------------------------------------------------


@pytest.fixture
def mesh():
    return make_mesh(config.MeshShape(data=2, tensor=2))


def test_specs_by_hand(mesh):
    params = abstract(PRESETS["tiny-qwen2"])
    shardings = shardings_of(params, mesh, PARAM_RULES)
    assert shardings.embed.spec == P("tensor", "fsdp")
    assert shardings.blocks.q.spec == P(None, "fsdp", "tensor", None)  # L D N H
    assert shardings.blocks.k_bias.spec == P(None, "tensor", None)  # L K H
    assert shardings.blocks.q_norm is None
    assert shardings.head is None


def test_experts_have_an_axis_of_their_own():
    mesh = make_mesh(config.MeshShape(fsdp=2, expert=2, tensor=2))
    blocks = shardings_of(abstract(PRESETS["tiny-qwen3-moe"]), mesh, PARAM_RULES).blocks
    assert blocks.expert_gate.spec == P(None, "expert", "fsdp", "tensor")  # L E D F
    assert blocks.expert_down.spec == P(None, "expert", "tensor", "fsdp")  # L E F D
    assert blocks.q.spec == P(None, "fsdp", "tensor", None)  # nothing else lies over it
    assert num_row_shards(mesh) == 4


def test_few_key_value_heads_are_replicated_but_few_query_heads_refused():
    mesh = make_mesh(config.MeshShape(tensor=8))
    arch = PRESETS["Qwen/Qwen2.5-0.5B-Instruct"]  # 14 query heads, 2 key/value heads
    with pytest.raises(ValueError, match=r"blocks.q: tensor is 8, .* N of 14. Choose a mesh size"):
        shardings_of(abstract(arch), mesh, PARAM_RULES)
    shardings = shardings_of(
        abstract(PRESETS["Qwen/Qwen3-0.6B"]), make_mesh(MESHES[2]), PARAM_RULES
    )
    assert shardings.blocks.k.spec == P(None, "fsdp", "tensor", None)  # 8 over 4
    shardings = shardings_of(abstract(PRESETS["tiny-llama"]), make_mesh(MESHES[2]), PARAM_RULES)
    assert shardings.blocks.k.spec == P(None, "fsdp", None, None)  # 2 over 4
    assert shardings.blocks.q.spec == P(None, "fsdp", "tensor", None)


def test_an_optimizer_state_is_sharded_as_its_parameters_are(mesh):
    """Inside tuples and named tuples; the types of the tree stay."""
    params = abstract(PRESETS["tiny-qwen3"])
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = jax.eval_shape(optimizer.init, params)
    shardings = shardings_of(state, mesh, PARAM_RULES)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    of_params = shardings_of(params, mesh, PARAM_RULES)
    adam = shardings[1][0]
    assert adam.mu == of_params
    assert adam.nu == of_params
    assert adam.count.spec == P()


def test_a_state_keeps_its_shardings_through_an_update(mesh):
    """As in optax's own sharding tests: no leaf may come back with another type."""
    arch = PRESETS["tiny-qwen3"]
    shardings = shardings_of(abstract(arch), mesh, PARAM_RULES)
    params = jax.tree.map(
        lambda x, sharding: jax.device_put(np.ones(x.shape, x.dtype), sharding),
        abstract(arch),
        shardings,
    )
    optimizer = optax.adamw(1e-3)
    state = jax.eval_shape(optimizer.init, params)
    state = jax.jit(optimizer.init, out_shardings=shardings_of(state, mesh, PARAM_RULES))(params)

    @jax.jit
    def update(params, state):
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    new_params, new_state = update(params, state)
    for old, new in zip(
        jax.tree.leaves((params, state)), jax.tree.leaves((new_params, new_state)), strict=True
    ):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
        assert old.sharding.is_equivalent_to(new.sharding, old.ndim)


def test_batch_and_rollouts(mesh):
    batch = batch_shardings(mesh)
    assert batch.token_BT.spec == P(("data", "fsdp", "expert"), None)
    assert batch.num_rows.spec == P()
    # A batch that was scored before its first update has one array more.
    assert batch.old_logprob_BT.spec == batch.token_BT.spec
    shape = (8, 2, 16)
    rollouts = Rollouts(np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape[:2]))
    shardings = shardings_of(rollouts, mesh, ACTIVATION_RULES)
    assert shardings.logprob_QGC.spec == P(("data", "fsdp", "expert"), None, None)


def test_fields_that_only_some_models_have(mesh):
    arch = dataclasses.replace(PRESETS["tiny-qwen3"], is_tied=False)
    shardings = shardings_of(abstract(arch), mesh, PARAM_RULES)
    assert shardings.head.spec == P("fsdp", "tensor")
    assert shardings.blocks.q_norm.spec == P(None, None)


# --- what is refused ----------------------------------------------------------------------------


@flax.struct.dataclass
class Odd:
    w: Float[Array, "D D"]


@flax.struct.dataclass
class Unknown:
    w: Float[Array, "D Z"]


@flax.struct.dataclass
class Outer:
    inner: Unknown


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (Odd(jnp.ones((4, 4))), r"w: D and D of 'D D' both lie along the mesh axis fsdp"),
        (Outer(Unknown(jnp.ones((4, 4)))), r"inner.w: no sharding rule for the letter Z"),
        (Unknown(jnp.ones((4, 4))), "^w: no sharding rule for the letter Z"),
        (Odd(jnp.ones(4)), r"w has shape \(4,\), but its letters are 'D D'"),
        ({"a": [jnp.ones(4)]}, r"\['a'\]\[0\] has shape \(4,\) but no letters"),
        ((jnp.ones(()), "text"), r"\[1\] is 'text', which is not an array"),
    ],
    ids=["axis-twice", "no-rule-inside", "no-rule", "rank", "no-letters", "no-array"],
)
def test_what_cannot_be_sharded(tree, message, mesh):
    with pytest.raises(ValueError, match=message):
        shardings_of(tree, mesh, PARAM_RULES)


# --- activations --------------------------------------------------------------------------------


def test_constrain_splits_the_rows_and_not_the_width(mesh):
    x_BTD = jnp.ones((8, 3, 16))
    np.testing.assert_array_equal(constrain(x_BTD, "B T D"), x_BTD)  # no mesh: nothing happens
    with jax.set_mesh(mesh):
        y_BTD = jax.jit(lambda x: constrain(x, "B T D"))(x_BTD)
    assert y_BTD.sharding.shard_shape(y_BTD.shape) == (2, 3, 16)
    with pytest.raises(ValueError, match="letters are 'B T'"), jax.set_mesh(mesh):
        constrain(x_BTD, "B T")
