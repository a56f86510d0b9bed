"""Which tokens of an example are learned, where it is not the whole completion: spans of its text, marked passages,
every turn of the assistant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import TrainError
from .tokens import TokenPair, encode_pair, encode_prompt, render, turn_end

Spans = Sequence[Sequence[int]]  # [begin, end) in characters


def marked_spans(text: str, markers: tuple[str, str]) -> tuple[str, list[tuple[int, int]]]:
    """The text without its markers, and what stood between them. ValueError unless they open and close in turn."""
    opening, closing = markers
    plain, spans = "", []
    while opening in text:
        before, _, text = text.partition(opening)
        inside, closed, text = text.partition(closing)
        if not closed or closing in before or opening in inside:
            raise ValueError(f"expected {opening!r} and {closing!r} in turn")
        plain += before
        spans.append((len(plain), len(plain) + len(inside)))
        plain += inside
    if closing in text:
        raise ValueError(f"expected {opening!r} and {closing!r} in turn")
    return plain + text, spans


def encode_spans(tokenizer, example: Mapping[str, Any], spans: Spans, ends: Sequence[int]) -> TokenPair:
    """Prompt and completion of an example, and which of the completion's tokens carry loss: those that share a
    character with one of the spans of its text, and the end token where a span reaches to the end.

    Raises ValueError where a span is none or none is given, TrainError on a tokenizer that does not tell where its
    tokens stand.
    """
    text = example["completion"]
    if not tokenizer.is_fast:
        raise TrainError(f"{type(tokenizer).__name__} does not tell where its tokens stand in a text: no spans with it")
    if not spans or not all(len(s) == 2 and 0 <= s[0] < s[1] <= len(text) for s in spans):
        raise ValueError(f"expected spans [begin, end) within its {len(text)} characters, got {list(spans)}")
    prompt, completion = encode_pair(tokenizer, example, ends)
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    learned = [any(a < end and max(b, a + 1) > begin for begin, end in spans) for a, b in places]
    learned += [any(end == len(text) for _, end in spans)] * (len(completion) - len(places))  # the end token, if added
    if not any(learned):
        raise ValueError(f"no token stands in the spans {list(spans)}")
    return prompt, completion, learned


def encode_turns(tokenizer, example: Mapping[str, Any], ends: Sequence[int]) -> TokenPair:
    """An example whose prompt is chat messages, with every turn of the assistant learned, not the last alone: what the
    model would have had to write, its end included. The first part ends where the first turn of the assistant begins.

    Raises TrainError where the template writes a conversation's beginning in another way once it goes on (some leave
    out earlier thoughts): then no place in the whole is what the model would have seen.
    """
    prompt, completion = encode_pair(tokenizer, example, ends)
    learned = [False] * len(prompt) + [True] * len(completion)
    messages, end = example["prompt"], turn_end(tokenizer)
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = encode_prompt(tokenizer, messages[:number], example)
        after = render(tokenizer, messages[: number + 1], example, add_generation_prompt=False)
        if prompt[: len(before)] != before or prompt[: len(after)] != after:
            raise TrainError(
                f"the chat template writes message {number} in another way where the conversation goes on, so its "
                f'turns cannot be learned together; leave out turns = "all": {list(messages)!r}'
            )
        turn = after[len(before) :]
        last = len(turn) - 1 - turn[::-1].index(end) if end in turn else len(turn) - 1  # no line break behind the end
        learned[len(before) : len(before) + last + 1] = [True] * (last + 1)
    begin = learned.index(True)
    whole = prompt + completion
    return whole[:begin], whole[begin:], learned[begin:]
