"""The pool that tests share where they ask nothing special of it."""

from collections.abc import Iterator

import pytest

from cipo_jax.config import Verify
from cipo_jax.verify import VerifierPool


@pytest.fixture(scope="session")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(Verify(workers=2, deadline_s=5.0)) as pool:
        yield pool
