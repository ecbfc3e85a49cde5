"""What a model thought is no part of its answer: the one rule by which it is left out.

It holds for what is judged and for the attempt that a correction prompt quotes, so that the policy
is shown what was judged.
"""

from __future__ import annotations

import re

_TAG = re.compile("</?think>")


def without_thinking(completion: str) -> str:
    """The completion without its blocks from `<think>` to the next `</think>`.

    A block that is never closed (the completion was cut) runs to the end. A `</think>` that closes
    nothing ends a block that began in the prompt: all before it is thinking.
    Takes time linear in the completion, whatever it holds.
    """
    said: list[str] = []
    is_thinking, start = False, 0
    for tag in _TAG.finditer(completion):
        if tag[0] == "</think>":
            if not is_thinking:
                said.clear()
            is_thinking, start = False, tag.end()
        elif not is_thinking:
            said.append(completion[start : tag.start()])
            is_thinking = True
    if not is_thinking:
        said.append(completion[start:])
    return "".join(said)
