"""Checks of the reward: what it pays on the data's own answers, and on a table of hard ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from warpup.rewards.answers import Grade, last_number
from warpup.rewards.check import check as check_table

from ..errors import TrainError
from ..rewards.calls import Completion
from ..rewards.reward_set import RewardSet
from .findings import Examples, Patient, Result, check, fault, fine, note

FORMS = (
    "{}", "The answer is {}.", r"\boxed{{}}", "<answer>{}</answer>", "#### {}",
    "<think> so it is </think> <answer> {} </answer>", "<think> so it is </think> {}",
    r"<think> so it is </think> \boxed{{}}",
)  # fmt: skip
ROWS = 24  # of a place that are tried
PAID = 0.9  # share of right answers from which on a form counts as one that is paid


@check
def reward(patient: Patient) -> Iterator[Result]:
    """right and wrong answers of the data in several forms, and of a table: what is paid, what is refused"""
    for place, rewards in patient.rewards.items():
        rows = [row for row in patient.data.get(place, ()) if str(row.get("answer") or "").strip()]
        some = [rows[i] for i in range(0, len(rows), -(-len(rows) // ROWS))] if rows else []
        if some:
            yield from _on(place, as_function(rewards), some)
        elif place in patient.data:
            yield note(f"{place}: no row has an answer to try it with", "warpup.rewards.check with cases of yours")


def _on(place: str, pays: Callable, rows: Examples) -> Iterator[Result]:
    try:
        shares = {form: _share(pays, form, rows) for form in FORMS}
        own = [row for row in rows if isinstance(row.get("completion"), str)]
        taught = sum(pays(row["completion"], row).correct for row in own) / len(own) if own else None
    except TrainError as error:
        yield fault(f"{place}: {error}", "correct the reward")
        return
    if taught is not None and taught < PAID:
        yield fault(
            f"{place}: {1 - taught:.0%} of the data's own completions are not paid",
            "let the completions have the form and the answers that the reward wants",
        )
    paid = [form for form, share in shares.items() if share >= PAID]
    if not paid:
        best = max(shares, key=shares.__getitem__)
        found = f"{place}: right answers are paid in none of {len(FORMS)} forms"
        found += f", at best {shares[best]:.0%} as {_listed([best])}"
        if taught is not None and taught >= PAID:  # in a form of their own
            yield note(found, "nothing: the data's own completions are paid")
        else:
            yield fault(found, "let the reward accept a form that the prompts ask for")
        return
    refused = [form for form in FORMS if form not in paid]
    yield fine(f"{place}: right answers are paid as {_listed(paid)}" + (f", not as {_listed(refused)}" * bool(refused)))
    form = paid[0]
    wrong = [(text, row) for row, text in _wrong(rows) if pays(form.replace("{}", text), row).correct]
    if wrong:
        text, row = wrong[0]
        yield fault(
            f"{place}: {len(wrong)} wrong answers are paid, such as {text!r} for {row['answer']!r}",
            "compare the final answer alone, and whole (warpup.rewards:number, exact, math_verify)",
        )
    else:
        yield fine(f"{place}: other rows' answers, none at all, and longer texts are not paid")
    if all(last_number(str(row["answer"])) is not None for row in rows):
        yield _by_table(place, pays, form, rows[0])


def _by_table(place: str, pays: Callable, form: str, row: Any) -> Result:
    missed = check_table(pays, form=form, columns=row)
    paid = [str(one) for one in missed if not one.case.right and not one.error]
    refused = [str(one) for one in missed if one.case.right or one.error]
    if paid:
        return fault(f"{place}: of the table it {'; '.join(paid[:3])} ({len(paid)} in all)", "warpup.rewards:number")
    if refused:
        found = f"{place}: of the table it {'; '.join(refused[:3])} ({len(refused)} in all)"
        return note(found, "warpup.rewards:number, if such answers are right here")
    return fine(f"{place}: the table of numbers, fractions, percent, units and so on is judged right")


def _wrong(rows: Examples) -> Iterator[tuple[Any, str]]:
    """Rows with answers that are wrong for them: another row's, none, one that holds the right one."""
    for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
        known = str(row["answer"]).strip()
        if str(other["answer"]).strip() != known:
            yield row, str(other["answer"])
            yield row, f"{known} {other['answer']}"
        yield row, ""
        if last_number(known) is not None and last_number(known) == last_number(known.lstrip("-")) != 0:
            yield row, f"-{known}"


def _share(pays: Callable, form: str, rows: Examples) -> float:
    return sum(pays(form.replace("{}", str(row["answer"])), row).correct for row in rows) / len(rows)


def _listed(forms: list[str]) -> str:
    return ", ".join(f'"{form.replace("{}", "A")}"' for form in forms)


def as_function(rewards: RewardSet) -> Callable[[str, Any], Grade]:
    """A set of rewards as one that says whether a completion is paid: told to be correct, else worth more than 0."""

    def pays(completion, example):
        ids = list(range(len(completion.split()) or 1))  # a token is a word
        scores = rewards.score([Completion(completion, completion, ids, finished=True)], [example])
        [value], [correct] = scores.rewards, scores.correct
        return Grade(value, bool(correct > 0 if correct == correct else value > 0))  # NaN: it does not say

    return pays
