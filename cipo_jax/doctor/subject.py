"""The config's model and problems: whether they can be read, and whether prompts fit."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cipo_jax import tasks
from cipo_jax.config import Config
from cipo_jax.doctor.diagnosis import Diagnosis, ok, warn
from cipo_jax.model.files.load import load_architecture
from cipo_jax.tasks.stream import ProblemStream
from cipo_jax.text.prompts import Renderer, longest_prompt
from cipo_jax.text.tokenizer import check_fits, eos_ids, load_tokenizer
from cipo_jax.verify.verdict import PlainReference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Both checks ask for them; a source is hashable.
_problems = functools.cache(tasks.load)


def model(cfg: Config) -> Iterator[Diagnosis]:
    """Constants, tokenizer, the tokens that end an answer, chat template. No weights are read, but
    a model on the hub is fetched.

    Raises: ValueError that says which of them is missing, or that they do not belong together.
    """
    arch = load_architecture(cfg.model)
    tokenizer = load_tokenizer(cfg.model)
    check_fits(tokenizer, arch)
    yield ok(
        "model",
        f"{arch.num_layers} layers, width {arch.model_dim}, {arch.vocab_size} tokens "
        f"({len(tokenizer)} in the tokenizer)",
    )
    ends = eos_ids(cfg.model, tokenizer)
    named = ", ".join(f"{i} {tokenizer.convert_ids_to_tokens(i)}" for i in ends)
    yield ok("end of answer", named)
    yield template(tokenizer, thinking=cfg.prompts.thinking)


def template(tokenizer: PreTrainedTokenizerFast, *, thinking: bool) -> Diagnosis:
    """Whether the chat with an answer begins with the very prompt that asked for it.

    A run does not depend on it: its prompts are one turn, and completions are kept as tokens. It
    matters for fine-tuning on whole chats, and for serving the model with several turns.
    """
    asked = [{"role": "user", "content": "What is 1 + 1?"}]
    answered = [*asked, {"role": "assistant", "content": "It is 2."}]
    prompt, chat = (
        tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=is_open, enable_thinking=thinking
        )
        for messages, is_open in ((asked, True), (answered, False))
    )
    if chat.startswith(prompt):
        return ok("chat template", "a prompt is the beginning of the chat with its answer")
    same = next(i for i, (a, b) in enumerate(zip(prompt, f"{chat}\0", strict=False)) if a != b)
    return warn(
        "chat template",
        f"the prompt has {prompt[same:]!r} where the chat with its answer has "
        f"{chat[same : same + 24]!r}",
        "Training is not affected: prompts are single turns, and answers are kept as tokens.",
    )


def problems(cfg: Config) -> Iterator[Diagnosis]:
    """Renders every prompt as a run does at its start, and draws the order of the problems.

    Raises: ValueError for a source that can't be read, a prompt that is too long, or fewer problems
      than a step takes.
    """
    loaded = _problems(cfg.tasks)
    renderer = Renderer(load_tokenizer(cfg.model), cfg.prompts)
    longest = longest_prompt(renderer, (*loaded.held_out, *loaded.train))
    ProblemStream(loaded.train, cfg.train.prompts_per_step, cfg.seed)
    yield ok(
        "problems",
        f"{len(loaded.train)} to train on, {len(loaded.held_out)} held out; longest prompt "
        f"{longest} tokens of {cfg.prompts.max_prompt_tokens}",
    )


def executes(cfg: Config) -> bool:
    """Whether answers are judged in processes of the verifier's pool, and not only by comparing
    numbers and texts; True if the problems can't be read."""
    try:
        loaded = _problems(cfg.tasks)
    except (ValueError, OSError, ImportError):
        return True
    return not all(
        isinstance(problem.reference, PlainReference)
        for problem in (*loaded.train, *loaded.held_out)
    )
