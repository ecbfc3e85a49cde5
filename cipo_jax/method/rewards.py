"""What shapes a reward beside the verifier: the risk of a correction, and length."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int


def correction_reward(
    raw_MG: Float[np.ndarray, "M G"], is_right_M: Bool[np.ndarray, " M"], risk_penalty: float
) -> Float[np.ndarray, "M G"]:
    """The verifier's score of each correction, less a penalty where it broke a right attempt.

        shaped[m,g] = raw[m,g] - risk_penalty * z[m] * (1 - raw[m,g]),   z = 1 for a right attempt

    So a failure repaired earns 1, a failure kept 0, a right attempt kept 1 and one broken
    -risk_penalty. An editor that can't tell right from wrong attempts then gains by editing only if
    P(fix) * P(wrong) > (1 + risk_penalty) * P(break) * P(right).

    The shaped reward serves the advantages alone: retention and every metric use the raw score.

    Args:
      raw_MG: verifier scores in [0, 1] of G corrections of each of M anchors; NaN stays NaN.
      is_right_M: whether the attempt being corrected was right.
      risk_penalty: lambda_r, not negative.
    Raises: ValueError if risk_penalty is negative.
    """
    if risk_penalty < 0:
        raise ValueError(
            f"correction.risk_penalty is {risk_penalty}: a negative penalty would reward breaking "
            "correct attempts. Use 0 for no penalty."
        )
    broken_MG: np.ndarray = is_right_M[:, None] * (1 - raw_MG)
    return raw_MG - risk_penalty * broken_MG


def overlong_penalty(
    length_QG: Int[np.ndarray, "Q G"], *, limit: int, share: float, penalty: float
) -> Float[np.ndarray, "Q G"]:
    """What a completion loses by its length: nothing up to (1 - share) * limit, then linearly more,
    to `penalty` at the limit.

        penalty * max(0, (length - (L - C)) / C),   L = limit, C = share * limit

    Both streams have the same rule. It shapes advantages alone; verdicts and metrics stay as they
    are.

    Args:
      length_QG: sampled tokens, at most `limit`.
      limit: sampling.max_new_tokens.
      share: in (0, 1].
    Returns: float64, not negative.
    Source: Yu et al. 2025 (DAPO), arXiv 2503.14476, equation 13, with a completion at the limit for
      one beyond it.
    """
    buffer = share * limit
    return penalty * np.maximum(0.0, (length_QG - (limit - buffer)) / buffer)
