"""Random packed batches that obey `records.Batch`, for the tests of the train step."""

import numpy as np

from cipo_jax.records import Batch, Stream


def random_batch(
    num_rows: int,
    row_tokens: int,
    *,
    vocab_size: int,
    seed: int = 0,
    num_used: int | None = None,
    samples: int = 2,
) -> Batch:
    """Rows of units with a shared prompt and `samples` completions, both streams mixed, all lengths
    uneven. The weights are one over the number of targets of the stream (token mean)."""
    rng = np.random.default_rng(seed)
    num_used = num_rows if num_used is None else num_used
    batch = Batch.empty(num_rows, row_tokens)
    for row in range(num_used):
        start, segment = 0, 0
        while True:
            prompt = rng.integers(2, max(3, row_tokens // 6))
            lengths = rng.integers(1, max(2, row_tokens // 5), samples)
            if start + prompt + lengths.sum() > row_tokens:
                break
            stream = rng.integers(2)
            segment += 1
            prefix, last = segment, start + prompt - 1
            pieces = [(prompt, 0, False)] + [(length, prompt, True) for length in lengths]
            for index, (length, offset, is_target) in enumerate(pieces):
                segment = prefix + index
                at = (row, slice(start, start + length))
                batch.token_BT[at] = rng.integers(1, vocab_size, length)
                batch.position_BT[at] = offset + np.arange(length)
                batch.segment_BT[at] = segment
                batch.prefix_BT[at] = prefix
                batch.predecessor_BT[at] = np.arange(start - 1, start + length - 1)
                batch.predecessor_BT[row, start] = last if is_target else 0
                batch.stream_BT[at] = stream
                batch.is_target_BT[at] = is_target
                if is_target:
                    batch.sampler_logprob_BT[at] = rng.normal(-np.log(vocab_size), 0.3, length)
                    batch.advantage_BT[at] = rng.normal()
                start += length
    for stream in Stream:
        chosen = batch.is_target_BT & (batch.stream_BT == stream)
        batch.weight_BT[chosen] = 1 / max(chosen.sum(), 1)
    return batch.replace(num_rows=np.int32(num_used))
