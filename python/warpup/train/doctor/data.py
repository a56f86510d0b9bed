"""Checks of the data: answers that are missing, rows that are trained on and measured, lengths."""

import unicodedata
from collections.abc import Iterator
from typing import Any

from ..model.tokens import encode_pair, encode_prompt, end_tokens
from .findings import Examples, Patient, Result, check, fault, fine, note

MEASURED = 2048  # rows of a place whose tokens are counted, spread over all of them
CUT = 0.1  # share of known completions over max_new_tokens from which on a run is spoiled


@check
def answers(patient: Patient) -> Iterator[Result]:
    """whether every row that a reward scores has an answer"""
    for place, rows in patient.data.items():
        has = [_has(row, "answer") for row in rows]
        if place not in patient.rewards and not any(has):
            continue
        if all(has):
            yield fine(f"{place}: {len(rows)} of {len(rows)} have one")
        elif any(has):
            first = has.index(False)
            yield fault(
                f"{place}: {len(has) - sum(has)} of {len(has)} have none, the first is row {first}", "leave them out"
            )
        else:
            yield note(f"{place}: no row has one", "nothing, where the reward reads another column")


def _has(row: Any, name: str) -> bool:
    return row.get(name) is not None and str(row[name]).strip() != ""


@check
def overlap(patient: Patient) -> Iterator[Result]:
    """prompts that are held out and trained on too, as they are and without case, punctuation and white space"""
    trained = {place: rows for place, rows in patient.data.items() if place != "held_out"}
    for normal, how in ((str, "as they are"), (normalised, "but for case and punctuation")):
        held = [normal(_text(row)) for row in patient.data.get("held_out", ())]
        for place, rows in trained.items():
            texts = [normal(_text(row)) for row in rows]
            both = set(texts) & set(held)
            if held and both:
                shared = sum(text in both for text in held)
                yield fault(
                    f"{shared} of {len(held)} held-out prompts are in {place}, {how}", "take them out of one of the two"
                )
            elif held and normal is normalised:
                yield fine(f"no prompt of {place} is held out")
            twice = len(texts) - len(set(texts))
            if twice and normal is normalised:
                yield note(f"{twice} of {len(texts)} prompts of {place} repeat others", "nothing, if it is meant")
    for place, rows in patient.data.items():
        known: dict[str, set[str]] = {}
        for row in rows:
            if _has(row, "answer"):
                known.setdefault(_text(row), set()).add(normalised(str(row["answer"])))
        odd = [prompt for prompt, found in known.items() if len(found) > 1]
        if odd:
            yield fault(f"{place}: {len(odd)} prompts have two answers, such as {odd[0][:60]!r}", "correct them")


def normalised(text: str) -> str:
    """Letters and digits alone, and signs that mean something in mathematics."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in text if c.isalnum() or c in "+-*/=<>^%")


def _text(row: Any) -> str:
    """A prompt as text: that of all its messages."""
    prompt = row["prompt"]
    return prompt if isinstance(prompt, str) else "\n".join(str(turn.get("content")) for turn in prompt)


@check
def lengths(patient: Patient) -> Iterator[Result]:
    """tokens of prompts and completions, beside the positions that the model has and max_new_tokens"""
    limit = getattr(patient.model.config.get_text_config(), "max_position_embeddings", None)
    new = {"held_out": patient.config.held_out.max_new_tokens}
    new |= {place_of(stage): getattr(stage, "max_new_tokens", 0) for stage in patient.config.all_stages()}
    longest_new = max(patient.settings("max_new_tokens"), default=None)
    for place, rows in patient.data.items():
        prompts, completions = _counts(patient, rows)
        most = max(map(sum, zip(prompts, completions or [0] * len(prompts), strict=True)))
        most = max(most, max(prompts) + new.get(place, 0))
        found = f"{place}: prompts {_spread(prompts)}"
        found += f", completions {_spread(completions)}" if completions else ""
        found += f", {new[place]} new ones" if new.get(place) else ""
        if limit and most > limit:
            yield fault(f"{found}: {most} in all, the model has {limit} positions", "leave out or cut what is longer")
        else:
            yield fine(found + (f"; the model has {limit} positions" if limit else ""))
        if completions and longest_new:
            cut = sum(n > longest_new for n in completions) / len(completions)
            if cut > 0:
                text = f"{place}: {cut:.0%} of the known completions are longer than max_new_tokens = {longest_new}"
                change = f"max_new_tokens = {max(completions)}: what is cut off has no answer"
                yield fault(text, change) if cut > CUT else note(text, change)


def _counts(patient: Patient, rows: Examples) -> tuple[list[int], list[int]]:
    """Tokens of some rows' prompts, and of their completions if all of them have one."""
    tokenizer, ends = patient.tokenizer, end_tokens(patient.model, patient.tokenizer)
    some = [rows[i] for i in range(0, len(rows), -(-len(rows) // MEASURED))]
    if all(_has(row, "completion") for row in some):
        pairs = [encode_pair(tokenizer, row, ends) for row in some]
        return [len(prompt) for prompt, _ in pairs], [len(completion) for _, completion in pairs]
    return [len(encode_prompt(tokenizer, row["prompt"], row)) for row in some], []


def _spread(counts: list[int]) -> str:
    counts = sorted(counts)
    return f"{counts[0]} to {counts[-1]} tokens (half of them up to {counts[len(counts) // 2]})"


def place_of(stage: Any) -> str:
    """What a stage's data is called."""
    return type(stage).__name__.lower()
