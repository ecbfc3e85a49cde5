"""Losses, gradients and advantages beside those of TRL and verl, on the same random sequences.

In an environment of its own, since both bring torch and a good deal more:

    python -m venv peers && . peers/bin/activate
    pip install torch==2.13.0 trl==1.16.0 "jax[cpu]" flax jaxtyping optax pyyaml rich
    pip install --no-deps verl==0.9.1
    pip install omegaconf tensordict codetiming hydra-core ray torchdata orjson
    PYTHONPATH=. python tests/peers/objectives.py

Ours run on packed rows of both sequences and groups, theirs on one padded sequence a row. Prints a
line for each comparison with the largest difference, and exits with 1 if one is above 1e-5 of the
largest entry. Losses of TRL are read from its trainers' own `_compute_loss`, given log-probs in the
place of a model.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import defaultdict
from types import SimpleNamespace

import jax
import numpy as np
import torch
from trl import GRPOTrainer, RLOOTrainer
from trl.rewards import get_soft_overlong_punishment
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos as verl
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.workers.config import ActorConfig

from cipo_jax.config import (
    Cispo,
    DrGrpo,
    Grpo,
    Gspo,
    Kl,
    MaskedSequence,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    Rloo,
    SequenceTis,
    TokenTis,
    Train,
)
from cipo_jax.method.advantages import Scores, objective_advantage
from cipo_jax.method.losses import divergence, policy_loss
from cipo_jax.method.mix import Completion, Group, mix
from cipo_jax.method.rewards import overlong_penalty
from cipo_jax.records import Stream

NUM_GROUPS, NUM_SAMPLES, MAX_NEW_TOKENS = 4, 6, 12
TOLERANCE = 1e-5
TRAIN = Train(row_tokens=64)
NO_KL = Kl()
AGGREGATIONS = (
    "token-mean",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
)

worst: dict[str, float] = {}


def compare(name: str, ours, theirs) -> None:
    """Print the largest difference, relative to the largest entry."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    gap = float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-12))
    worst[name] = gap
    print(f"{'ok ' if gap < TOLERANCE else 'BAD'} {gap:8.1e}  {name}")


# --- one case, in both forms ------------------------------------------------------------------

rng = np.random.default_rng(0)
SHAPE = (NUM_GROUPS, NUM_SAMPLES, MAX_NEW_TOKENS)
length = rng.integers(1, MAX_NEW_TOKENS + 1, SHAPE[:2])
mask = np.arange(MAX_NEW_TOKENS) < length[..., None]
sampler = np.where(mask, -rng.exponential(1.0, SHAPE), 0).astype(np.float32)
old = np.where(mask, sampler + 0.3 * rng.normal(size=SHAPE), 0).astype(np.float32)
new = np.where(mask, old + 0.3 * rng.normal(size=SHAPE), 0).astype(np.float32)
reference = np.where(mask, new + 0.4 * rng.normal(size=SHAPE), 0).astype(np.float32)
reward = rng.integers(0, 2, SHAPE[:2]).astype(np.float32)
advantage = rng.normal(size=SHAPE[:2]).astype(np.float32)


def rows(x: np.ndarray) -> torch.Tensor:
    """[sequence, token], as TRL and verl take them."""
    return torch.tensor(x.reshape(-1, *x.shape[2:]))


def our_groups(logprob: np.ndarray) -> list[Group]:
    return [
        Group(
            stream=Stream.BASE,
            prompt_P=np.ones(3, np.int32),
            completions=[
                Completion(
                    token_C=np.ones(length[q, g], np.int32), logprob_C=logprob[q, g, : length[q, g]]
                )
                for g in range(NUM_SAMPLES)
            ],
            advantage_G=advantage[q],
            is_valid_G=np.ones(NUM_SAMPLES, bool),
        )
        for q in range(NUM_GROUPS)
    ]


def ours(objective, importance, kl=NO_KL) -> tuple[float, np.ndarray]:
    """Loss of the packed batch, and the gradient of each token's log-prob."""

    def lay(logprob):
        return mix(
            our_groups(logprob), objective=objective, train=TRAIN, max_new_tokens=MAX_NEW_TOKENS,
            max_rows=16, keep_zero_signal=True,
        )  # fmt: skip

    mixed = lay(sampler)
    batch = dataclasses.replace(mixed.batch, old_logprob_BT=lay(old).batch.sampler_logprob_BT)

    def loss(x):
        by_stream, _ = policy_loss(
            x,
            x,
            lay(reference).batch.sampler_logprob_BT if kl.weight else None,
            batch,
            objective=objective,
            kl=kl,
            importance=importance,
        )
        return by_stream[Stream.BASE]

    value, gradient = jax.value_and_grad(loss)(lay(new).batch.sampler_logprob_BT)
    return float(value), mixed.places.back(np.asarray(gradient))


def compare_losses(name: str, mine, theirs) -> None:
    """`theirs` maps log-probs [sequence, token] to a loss."""
    x = rows(new).requires_grad_()
    loss = theirs(x)
    loss.backward()
    compare(f"{name}: loss", mine[0], loss.item())
    compare(f"{name}: gradient", mine[1].reshape(-1, MAX_NEW_TOKENS), x.grad.numpy())


# Ours with importance correction take the ratio against `old`, as theirs; this one has no bound.
DECOUPLED = TokenTis(max_weight=1e30)
# q = 1: their functions have no sampler where no weights are given.
SAMPLER = sampler.copy()


def without_gap(function, *args):
    """Ours with the sampler at `old`, so that q is 1."""
    sampler[:] = old
    try:
        return function(*args)
    finally:
        sampler[:] = SAMPLER


# --- verl -------------------------------------------------------------------------------------


def verl_loss(function, aggregation, weights=None, **clip):
    actor = ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, **clip)

    def loss(x):
        value, _ = function(
            rows(old), x, rows(np.broadcast_to(advantage[..., None], SHAPE).copy()),
            rows(mask).float(), loss_agg_mode=aggregation, config=actor, rollout_is_weights=weights,
        )  # fmt: skip
        return value

    return loss


WIDE = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}
for aggregation in AGGREGATIONS:
    objective = Grpo(clip_low=0.2, clip_high=0.28, dual_clip=1.6, aggregation=aggregation)
    theirs = verl_loss(verl.compute_policy_loss_vanilla, aggregation, clip_ratio_c=1.6, **WIDE)
    compare_losses(
        f"verl vanilla, dual clip, {aggregation}", without_gap(ours, objective, DECOUPLED), theirs
    )

compare_losses(
    "verl gspo",
    without_gap(ours, Gspo(clip_low=0.05, clip_high=0.1), DECOUPLED),
    verl_loss(
        verl.compute_policy_loss_gspo,
        "seq-mean-token-mean",
        clip_ratio_low=0.05,
        clip_ratio_high=0.1,
    ),
)
compare_losses(
    "verl cispo",
    without_gap(ours, Cispo(min_weight=0.0, max_weight=1.2), DECOUPLED),
    verl_loss(
        verl.compute_policy_loss_cispo, "token-mean", clip_ratio_low=10.0, clip_ratio_high=0.2
    ),
)
for level, importance in (("token", TokenTis()), ("sequence", SequenceTis())):
    log_ratio = rows(old - sampler)
    weights, _ = compute_rollout_correction_weights(
        log_ratio, rows(mask).float(), rollout_is=level, rollout_is_threshold=2.0
    )
    objective = Grpo(clip_high=0.28, aggregation="token-mean", dual_clip=3.0)
    compare_losses(
        f"verl vanilla, {level} importance weights",
        ours(objective, importance),
        verl_loss(verl.compute_policy_loss_vanilla, "token-mean", weights, **WIDE),
    )

for estimator in ("k1", "k2", "k3"):
    log_gap = np.where(mask, new - reference, 0)
    theirs = verl.kl_penalty(rows(new), rows(reference), estimator)
    compare(
        f"verl {estimator}",
        divergence(log_gap.reshape(-1, MAX_NEW_TOKENS), estimator=estimator),
        theirs,
    )

index = np.repeat(np.arange(NUM_GROUPS), NUM_SAMPLES)
penalty = np.where(mask, 0.1 * np.abs(rng.normal(size=SHAPE)), 0)
scores = Scores(reward_QG=reward, is_valid_QG=np.ones(SHAPE[:2], bool), length_QG=length)
last = np.arange(MAX_NEW_TOKENS) == length[..., None] - 1
at_end = np.where(last, reward[..., None], 0)


def per_token(found: np.ndarray) -> np.ndarray:
    found = found if found.ndim == 3 else found[..., None]
    return np.where(mask, found, 0).reshape(-1, MAX_NEW_TOKENS)


for name, objective, function, kwargs in (
    ("grpo", Grpo(ddof=1, std_eps=1e-6), verl.compute_grpo_outcome_advantage, {"index": index}),
    (
        "grpo without std", DrGrpo(), verl.compute_grpo_outcome_advantage,
        {"index": index, "norm_adv_by_std_in_grpo": False},
    ),
    ("rloo", Rloo(), verl.compute_rloo_outcome_advantage, {"index": index}),
    (
        "reinforce++ baseline", ReinforcePlusPlusBaseline(ddof=1),
        verl.compute_reinforce_plus_plus_baseline_outcome_advantage, {"index": index},
    ),
):  # fmt: skip
    theirs, _ = function(rows(at_end), rows(mask).float(), **kwargs)
    compare(
        f"verl advantage, {name}",
        per_token(objective_advantage(scores, objective=objective)),
        theirs,
    )
theirs, _ = verl.compute_reinforce_plus_plus_outcome_advantage(
    rows(at_end - penalty), rows(mask).double(), config=AlgoConfig(gamma=1.0)
)
shaped = dataclasses.replace(scores, token_penalty_QGC=penalty)
found = objective_advantage(shaped, objective=ReinforcePlusPlus(ddof=1))
compare("verl advantage, reinforce++ with penalties of tokens", per_token(found), theirs)


# --- TRL --------------------------------------------------------------------------------------


def trl_trainer(cls, **settings):
    """A trainer without a model: its loss, on log-probs that are given."""
    trainer = object.__new__(cls)
    defaults = {
        "aux_loss_enabled": False, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None,
        "importance_sampling_level": "token", "beta": 0.0, "use_vllm": False,
        "vllm_importance_sampling_correction": False, "epsilon_low": 0.2, "epsilon_high": 0.2,
        "current_gradient_accumulation_steps": 1, "max_completion_length": MAX_NEW_TOKENS,
        "model": SimpleNamespace(training=True), "_entropy_bonus_enabled": False,
        "args": SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        "accelerator": SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        "_metrics": defaultdict(lambda: defaultdict(list)),
    }  # fmt: skip
    for name, value in (defaults | settings).items():
        setattr(trainer, name, value)

    def loss(x):
        trainer._get_per_token_logps_and_entropies = lambda *a, **k: (x, torch.zeros_like(x), None)
        ids = torch.zeros_like(rows(mask)).long()
        return trainer._compute_loss(
            None,
            {
                "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids,
                "completion_mask": rows(mask).long(), "advantages": rows(advantage),
                "old_per_token_logps": rows(old), "old_logps": rows(old).sum(-1),
                "ref_per_token_logps": rows(reference),
                "num_items_in_batch": rows(mask).sum(),
                "importance_sampling_ratio": settings.get("weights"),
            },
        )  # fmt: skip

    return loss


for loss_type, objective, settings in (
    ("grpo", Grpo(), {}),
    ("dr_grpo", DrGrpo(), {}),
    ("dapo", Grpo(clip_high=0.28, aggregation="token-mean"), {"epsilon_high": 0.28}),
    ("cispo", Cispo(max_weight=1.3), {"epsilon_high": 1.3}),
):
    theirs = trl_trainer(GRPOTrainer, loss_type=loss_type, **settings)
    compare_losses(f"TRL {loss_type}", without_gap(ours, objective, DECOUPLED), theirs)
compare_losses(
    "TRL grpo with k3",
    without_gap(ours, Grpo(), DECOUPLED, Kl(weight=0.1)),
    trl_trainer(GRPOTrainer, loss_type="grpo", beta=0.1),
)
compare_losses(
    "TRL grpo with delta, our dual clip",
    without_gap(ours, Grpo(dual_clip=1.5), DECOUPLED),
    trl_trainer(
        GRPOTrainer, loss_type="grpo",
        args=SimpleNamespace(delta=1.5, use_bias_correction_kl=False, steps_per_generation=1),
    ),
)  # fmt: skip
compare_losses(
    "TRL gspo",
    without_gap(ours, Gspo(clip_low=0.05, clip_high=0.1), DECOUPLED),
    trl_trainer(
        GRPOTrainer, loss_type="grpo", importance_sampling_level="sequence",
        epsilon_low=0.05, epsilon_high=0.1,
    ),
)  # fmt: skip
# Its default: the weight of a sequence, 0 above 3.
q = np.exp((old - sampler).sum(-1, keepdims=True))
compare_losses(
    "TRL grpo, masked sequence importance weights",
    ours(Grpo(), MaskedSequence()),
    trl_trainer(
        GRPOTrainer, loss_type="grpo", use_vllm=True, vllm_importance_sampling_correction=True,
        weights=rows(np.where(q > 3.0, 0.0, q).astype(np.float32)),
    ),
)  # fmt: skip
compare_losses("TRL rloo", without_gap(ours, Rloo(), DECOUPLED), trl_trainer(RLOOTrainer))
punish = get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=5)
lengths = np.arange(1, 21)
compare(
    "TRL soft overlong punishment",
    -overlong_penalty(lengths[None], limit=20, share=0.25, penalty=1.0)[0],
    punish([[0] * n for n in lengths]),
)

# --- the check can fail -----------------------------------------------------------------------

print("\nControls, which must differ:")
bad = dict(worst)
compare_losses(
    "control: another clip range",
    without_gap(ours, Grpo(clip_high=0.4), DECOUPLED),
    trl_trainer(GRPOTrainer, loss_type="grpo"),
)
compare_losses(
    "control: no importance weights",
    without_gap(ours, Grpo(), DECOUPLED),
    trl_trainer(
        GRPOTrainer, loss_type="grpo", use_vllm=True, vllm_importance_sampling_correction=True,
        weights=rows(np.where(q > 3.0, 0.0, q).astype(np.float32)),
    ),
)  # fmt: skip
controls = [gap for name, gap in worst.items() if name not in bad]
failed = [name for name, gap in bad.items() if gap >= TOLERANCE]
print(f"\n{len(bad) - len(failed)} of {len(bad)} agree to {TOLERANCE}")
sys.exit(bool(failed) or min(controls) < TOLERANCE)
