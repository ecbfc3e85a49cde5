"""What every trainer in this bench is given, and how it is timed.

Needs the standard library, `tokenizers` and `transformers` alone, so that it runs in each trainer's
own environment.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist


@dataclass(frozen=True)
class Model:
    """A decoder of the Llama shape, tied embeddings, float32."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    vocab: int

    @property
    def layer_parameters(self) -> int:
        attention = 2 * self.width * (self.heads + self.kv_heads) * self.head_width
        return attention + 3 * self.width * self.mlp_width

    @property
    def parameters(self) -> int:
        norms = (2 * self.layers + 1) * self.width
        return self.vocab * self.width + self.layers * self.layer_parameters + norms


@dataclass(frozen=True)
class Work:
    """One step: `prompts` x `samples` completions, sampled and trained on once."""

    model: Model
    prompts: int
    samples: int
    prompt_tokens: int
    max_new_tokens: int
    spread: float
    """Sigma of log-normal completion lengths; 0: every completion has max_new_tokens. With a spread
    the completions are given, and only training is timed."""
    warm_steps: int
    steps: int

    @property
    def rows(self) -> int:
        return self.prompts * self.samples

    def lengths(self, step: int) -> list[int]:
        """Completion lengths of a step: the quantiles of the law, the longest max_new_tokens, in a
        random order."""
        if not self.spread:
            return [self.max_new_tokens] * self.rows
        law = NormalDist(0, self.spread)
        quantiles = [2.718281828 ** law.inv_cdf((i + 0.5) / self.rows) for i in range(self.rows)]
        lengths = [max(1, round(q / quantiles[-1] * self.max_new_tokens)) for q in quantiles]
        random.Random(step).shuffle(lengths)
        return lengths


SMALL = Model(4, 256, 4, 2, 64, 1024, 4096)
SMOLLM2_135M = Model(30, 576, 9, 3, 64, 1536, 49_152)

WORKS = {
    "W1": Work(SMALL, 8, 8, 64, 64, spread=0, warm_steps=2, steps=5),
    "W2": Work(SMOLLM2_135M, 4, 4, 64, 64, spread=0, warm_steps=1, steps=3),
    # Longest over mean: 4.2 in 16 completions.
    "W3": Work(SMOLLM2_135M, 4, 4, 64, 256, spread=1.0, warm_steps=1, steps=2),
}


def needed_flops(work: Work) -> dict[str, float]:
    """Floating-point operations that the work needs, whatever a trainer does beside it.

    Two per multiply-add; causal attention at its exact context; the head only where a logit is
    used; backward = 2 x forward. Every sample with its own copy of the prompt, as a formula of the
    work and not of a trainer: one that shares prompts computes fewer.
    """
    model, prompt, lengths = work.model, work.prompt_tokens, work.lengths(0)
    body, head = 2 * model.layers * model.layer_parameters, 2 * model.width * model.vocab
    per_context = 4 * model.layers * model.heads * model.head_width

    def attention(first: int, count: int) -> float:
        return per_context * sum(range(first, first + count))

    prefill = work.rows * (prompt * body + head + attention(1, prompt))
    decode = sum((n - 1) * (body + head) + attention(prompt + 1, n - 1) for n in lengths)
    forward = sum((prompt + n) * body + n * head + attention(1, prompt + n) for n in lengths)
    return {"rollout": prefill + decode, "train": 3 * forward}


def tokenizer(vocab: int):
    """A word-level tokenizer: "w7" is token 7, so 64 words are 64 tokens everywhere; no BOS."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


def prompts(work: Work, count: int) -> list[list[int]]:
    """Token ids of random prompts."""
    rng = random.Random(0)
    return [
        [rng.randrange(3, work.model.vocab) for _ in range(work.prompt_tokens)]
        for _ in range(count)
    ]


def completions(work: Work, step: int) -> list[list[int]]:
    """Token ids of given completions, for a work with a spread of lengths."""
    rng = random.Random(1_000 + step)
    return [[rng.randrange(3, work.model.vocab) for _ in range(n)] for n in work.lengths(step)]


def text(token_ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in token_ids)


def reward(token_ids: list[int]) -> float:
    """Cheap, and not constant within a group: the share of even tokens."""
    return sum(i % 2 == 0 for i in token_ids) / max(1, len(token_ids))


def text_reward(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    return [
        reward([int(w[1:]) for w in c.split() if w.startswith("w") and w[1:].isdigit()])
        for c in completions
    ]


# --- timing -----------------------------------------------------------------------------------


def _own_cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _machine_cpu_s() -> float:
    """Busy CPU-seconds of the whole machine since it started."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    user, nice, system, _, _, irq, softirq = map(int, fields)
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


class Clock:
    """Wall and CPU seconds of the phases of each step, and how busy others kept the machine."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._start: tuple[float, float, float] | None = None

    def begin(self) -> None:
        """A step begins; the one before ends."""
        self.end()
        self.steps.append({})
        self._start = time.perf_counter(), _own_cpu_s(), _machine_cpu_s()

    def end(self) -> None:
        if self._start is None:
            return
        wall, own, machine = self._start
        step_s, step_cpu_s = time.perf_counter() - wall, _own_cpu_s() - own
        others = max(0.0, _machine_cpu_s() - machine - step_cpu_s) / step_s / (os.cpu_count() or 1)
        self.steps[-1] |= {"step_s": step_s, "step_cpu_s": step_cpu_s, "others_share": others}
        self._start = None

    def add(self, phase: str, wall_s: float, cpu_s: float) -> None:
        if self.steps:
            step = self.steps[-1]
            step[f"{phase}_s"] = step.get(f"{phase}_s", 0.0) + wall_s
            step[f"{phase}_cpu_s"] = step.get(f"{phase}_cpu_s", 0.0) + cpu_s

    def timed(self, phase: str, call, *, after=None, first=None):
        """`call`, with its time booked to a phase; `after` waits for its result."""

        def run(*args, **kwargs):
            if first:
                first()
            wall, cpu = time.perf_counter(), _own_cpu_s()
            result = call(*args, **kwargs)
            if after:
                after(result)
            self.add(phase, time.perf_counter() - wall, _own_cpu_s() - cpu)
            return result

        return run


def record(trainer: str, name: str, clock: Clock, facts: dict, out: str) -> None:
    """Append one line of JSON: medians over the steps after the warm-up, and every step."""
    clock.end()
    measured = clock.steps[WORKS[name].warm_steps :]
    keys = sorted({key for step in measured for key in step})
    line = {
        "trainer": trainer,
        "work": name,
        "median": {k: statistics.median(s.get(k, 0.0) for s in measured) for k in keys},
        "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        **facts,
        "steps": clock.steps,
    }
    with Path(out).open("a") as file:
        file.write(json.dumps(line) + "\n")
    shown = {k: round(v, 3) for k, v in line["median"].items()}
    print(f"{trainer} {name}: {shown}, peak {line['peak_rss_gib']:.2f} GiB", flush=True)
