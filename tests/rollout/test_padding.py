"""Prompts as a batch of a fixed shape."""

import numpy as np
import pytest

from cipo_jax.rollout.padding import pad_prompts


def test_prompts_are_padded_on_the_right_to_a_fixed_shape():
    batch = pad_prompts([[5, 6, 7], [8]], [3, 9], length=4, num_prompts=3)
    np.testing.assert_array_equal(batch.token_QP, [[5, 6, 7, 0], [8, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.length_Q, [3, 1, 0])
    np.testing.assert_array_equal(batch.key_id_Q, [3, 9, 0])
    assert {x.dtype for x in (batch.token_QP, batch.length_Q, batch.key_id_Q)} == {
        np.dtype(np.int32)
    }
    with pytest.raises(ValueError, match=r"Prompt 1 has 5 tokens; .* from 1 to 4"):
        pad_prompts([[1], [1] * 5], [0, 1], length=4, num_prompts=2)
    with pytest.raises(ValueError, match="Prompt 0 has 0 tokens"):
        pad_prompts([[]], [0], length=4, num_prompts=1)
    with pytest.raises(ValueError, match="2 prompts don't fit into a batch of 1"):
        pad_prompts([[1], [1]], [0, 1], length=4, num_prompts=1)
