"""What one update finds out about itself."""

from __future__ import annotations

import flax.struct
from jax import Array
from jaxtyping import Bool, Float32

from cipo_jax.method.gaps import Gaps


@flax.struct.dataclass
class UpdateMetrics:
    """Scalars on the device. Means are over the trained tokens of the batch, NaN without any."""

    loss_base: Float32[Array, ""]
    loss_correction: Float32[Array, ""]
    """Each stream's loss, KL penalty included."""
    loss_total: Float32[Array, ""]
    """base + correction.weight * correction: what the update descends."""
    kl: Float32[Array, ""]
    """Mean divergence from the reference policy, nats; NaN without one in the loss."""
    grad_norm: Float32[Array, ""]
    """Global norm before clipping."""
    is_finite: Bool[Array, ""]
    """Whether loss and gradient are; no update is applied otherwise."""
    learning_rate: Float32[Array, ""]
    """Rate of this update."""
    entropy: Float32[Array, ""]
    """Mean entropy of the policy's law, nats."""
    clip_share: Float32[Array, ""]
    """Share of tokens whose gain is clipped."""
    ratio: Float32[Array, ""]
    """Mean probability ratio against the policy before the first update on the batch."""
    importance_weight: Float32[Array, ""]
    """Mean weight of that policy against the sampler's; 1 without importance correction."""
    importance_bounded_share: Float32[Array, ""]
    """Share of tokens whose weight is bounded; 0 without importance correction."""
    num_tokens: Float32[Array, ""]
    """Trained tokens."""
    gaps: Gaps
    """|trainer - sampler log-prob| over all sampled tokens of the batch, masked ones included."""
    num_masked: Float32[Array, ""]
    """Tokens left out by `parity.kind` mask."""
    is_tripped: Bool[Array, ""]
    """Whether the gaps are beyond the limits of `parity`."""
