"""How a problem, and an earlier attempt at it, become the tokens that the policy continues.

In come problems and attempts, out go token ids under the model's own chat template. Without a
verdict, which only the comparison `correction.context: labelled` hands over, the correction prompt
of a right attempt and of a wrong one with the same text are the same tokens. None shows the
reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import jinja2

from cipo_jax.config import Prompts
from cipo_jax.tasks.problem import Problem
from cipo_jax.text.tokenizer import markers
from cipo_jax.verify.thinking import without_thinking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ATTEMPT_LAST = """\
{question}

An earlier attempt at this problem follows. It {checked}.
<attempt>
{attempt}
</attempt>
Go through the attempt, keep what holds, repair what does not, then write a complete {result}. \
{answer_format}"""

ATTEMPT_FIRST = """\
<attempt>
{attempt}
</attempt>
The attempt above {checked}. Solve the problem.

{base}"""
# Few words, and the question last: so SmolLM2-135M fixes 14 % of its wrong attempts at a sum and
# keeps 33 % of the right ones (temperature 1, n = 108 and 54); with a longer request before the
# question 7 % and 19 %, with ATTEMPT_LAST 8 % and 24 %.

CHECKED = {
    None: "has not been checked; it may be right or wrong",
    True: "has been checked, and it is right",
    False: "has been checked, and it is wrong",
}

MARKER = "\n[... cut ...]\n"


class Renderer:
    """Renders prompts for one tokenizer.

    Text that comes from outside (questions and attempts) can't leave its place: a special token
    written out in it is split by a space, so that it is read as text; in an attempt, so are the
    tags of the attempt itself, and a program's attempt is put in a fence longer than its own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, cfg: Prompts) -> None:
        self._tokenizer = tokenizer
        self._cfg = cfg
        special = markers(tokenizer)
        # Longest first, since one may begin another.
        written = sorted(special.values(), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, written)) or r"(?!)")
        # Ordinary text may become the unknown token.
        self._special_ids = special.keys() - {tokenizer.unk_token_id}
        self._switch = self._thinking_switch()
        self._before = self._system_message()
        self._num_special = self._count_special(self._tokens("x"))

    def base(self, problem: Problem) -> list[int]:
        """The prompt that asks for a solution: the question, then the answer's form.

        Raises: ValueError if it is longer than `prompts.max_prompt_tokens`; it is never cut.
        """
        tokens = self._encode(self._base_text(problem), problem)
        if len(tokens) > self._cfg.max_prompt_tokens:
            raise ValueError(
                f"The prompt of problem '{problem.id}' has {len(tokens)} tokens, the limit "
                f"prompts.max_prompt_tokens is {self._cfg.max_prompt_tokens}: raise it, or leave "
                "the problem out of the data."
            )
        return tokens

    def correction(
        self, problem: Problem, attempt: str, *, verdict: bool | None = None
    ) -> list[int]:
        """The prompt that asks for a better solution, given the text of an earlier attempt.

        An attempt longer than `prompts.max_attempt_tokens`, or than what the rest leaves of
        `prompts.max_correction_prompt_tokens`, loses its middle. Nothing else is ever cut.

        Args:
          verdict: whether the attempt is right, if the prompt shall say so.
        Raises: ValueError if the prompt is too long with hardly any of the attempt left.
        """
        attempt = self._quoted(attempt)
        # Spans are of whole characters, so a cut never leaves half of one.
        spans = self._tokenizer(
            attempt, add_special_tokens=False, return_offsets_mapping=True
        ).offset_mapping
        limit = self._cfg.max_correction_prompt_tokens
        room = min(len(spans), self._cfg.max_attempt_tokens)
        while room >= 0:
            content = self._correction_text(problem, self._cut(attempt, spans, room), verdict)
            tokens = self._encode(content, problem)
            if len(tokens) <= limit:
                return tokens
            # More than once where the pieces of a cut text take other tokens than the whole did.
            room -= len(tokens) - limit
        raise ValueError(
            f"The correction prompt of problem '{problem.id}' does not fit into "
            f"prompts.max_correction_prompt_tokens {limit}, whatever is cut from the attempt: "
            "raise that limit."
        )

    def attempt_text(self, token_ids: Sequence[int]) -> str:
        """A completion as text: no special tokens, no thinking, no space around it."""
        text = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return without_thinking(text).strip()

    def is_retokenized(self, token_ids: Sequence[int]) -> bool:
        """Whether the text of a completion, read again, is other tokens than were sampled.

        A prompt that quotes it then shows the policy another sequence than it wrote: a tokenizer
        reads a text in one way, but the policy may write it in many, and half a character or an id
        without a text does not survive decoding at all. Markers, such as the end of the turn, are
        left out.
        """
        written = [token for token in token_ids if token not in self._special_ids]
        text = self._tokenizer.decode(written, clean_up_tokenization_spaces=False)
        read: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return read != written

    # --- texts ---

    def _base_text(self, problem: Problem) -> str:
        return f"{problem.question}\n{problem.answer_format}".rstrip()

    def _correction_text(self, problem: Problem, attempt: str, verdict: bool | None) -> str:
        if problem.is_code:
            longest = max(map(len, re.findall(r"`+", attempt)), default=0)
            fence = "`" * max(3, longest + 1)
            attempt = f"{fence}\n{attempt}\n{fence}"
        if self._cfg.correction_template == "attempt_first":
            return ATTEMPT_FIRST.format(
                attempt=attempt, checked=CHECKED[verdict], base=self._base_text(problem)
            )
        return ATTEMPT_LAST.format(
            question=problem.question,
            attempt=attempt,
            checked=CHECKED[verdict],
            result="program" if problem.is_code else "solution",
            answer_format=problem.answer_format,
        ).rstrip()

    def _quoted(self, attempt: str) -> str:
        """The attempt as text that neither a tokenizer nor a reader takes for structure."""
        attempt = attempt.encode(errors="replace").decode()
        attempt = re.sub(r"<(\s*/?\s*attempt\s*)>", r"&lt;\1&gt;", attempt, flags=re.IGNORECASE)
        return self._split_special(attempt)

    def _split_special(self, text: str) -> str:
        return self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def _cut(self, attempt: str, spans: Sequence[tuple[int, int]], room: int) -> str:
        """The attempt, without its middle if it has more than `room` tokens."""
        if len(spans) <= room:
            return attempt
        marker = self._tokenizer(MARKER, add_special_tokens=False).input_ids
        kept = max(0, room - len(marker))
        tail = kept // 2
        head = kept - tail
        end_of_head = spans[head - 1][1] if head else 0
        start_of_tail = spans[-tail][0] if tail else len(attempt)
        return attempt[:end_of_head] + MARKER + attempt[max(end_of_head, start_of_tail) :]

    # --- tokens ---

    def _encode(self, content: str, problem: Problem) -> list[int]:
        tokens = self._tokens(self._split_special(content))
        if self._count_special(tokens) != self._num_special:
            raise ValueError(
                f"The text of problem '{problem.id}', or of an attempt at it, becomes a special "
                "token of this tokenizer although it was split: the tokenizer rewrites text "
                "before it looks for special tokens, and prompts of it can't be trusted."
            )
        return tokens

    def _tokens(self, content: str) -> list[int]:
        text = self._rendered([*self._before, {"role": "user", "content": content}])
        # The template has written the beginning-of-sequence token, where the model wants one.
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _count_special(self, tokens: Sequence[int]) -> int:
        return sum(token in self._special_ids for token in tokens)

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self._switch
        )
        return text

    def _thinking_switch(self) -> dict[str, bool]:
        if "enable_thinking" in self._tokenizer.get_chat_template():
            return {"enable_thinking": self._cfg.thinking}
        if self._cfg.thinking:
            raise ValueError(
                "prompts.thinking is on, but the chat template of this model has no such switch: "
                "set it to false."
            )
        return {}

    def _system_message(self) -> list[dict[str, str]]:
        if not self._cfg.system:
            return []
        message = {"role": "system", "content": self._split_special(self._cfg.system)}
        try:
            rendered = self._rendered([message, {"role": "user", "content": "x"}])
        except jinja2.TemplateError:
            rendered = ""  # Some templates refuse a system message, others pass over it.
        if message["content"].strip() not in rendered:
            raise ValueError(
                "prompts.system is set, but the chat template of this model has no place for a "
                "system message: leave it empty."
            )
        return [message]


def longest_prompt(renderer: Renderer, problems: Iterable[Problem]) -> int:
    """Renders both prompts of every problem; returns the tokens of the longest base prompt.

    Raises: ValueError, as `Renderer` does, for a prompt that is too long.
    """
    longest = 0
    for problem in problems:
        longest = max(longest, len(renderer.base(problem)))
        renderer.correction(problem, "")
    return longest
