"""Does a reward pay what is right, and only that? A table of answers whose worth is known, and what one makes of it.

A reward that pays wrong answers is learned before the task is; one that refuses right ones for their form teaches the
form. Both look like progress in the curves.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple


class Case(NamedTuple):
    """A completion, the known answer, whether it is right, and what about it is hard (a key of `CASES`)."""

    completion: str
    answer: str
    right: bool
    kind: str = ""


class Misjudged(NamedTuple):
    """A case that a reward gets wrong: the reward that it gave, NaN where it failed, and how it failed."""

    case: Case
    reward: float
    error: str | None = None

    def __str__(self) -> str:
        does = "fails on" if self.error else "refuses" if self.case.right else "pays"
        kind = "right" if self.case.right else "wrong"
        why = f": {self.error}" if self.error else ""
        return f"{does} the {kind} {self.case.completion!r} for {self.case.answer!r}{why}"


def check(
    reward: str | Callable, cases: Iterable[Case] | None = None, *, form: str = "{}", columns: Mapping | None = None
) -> list[Misjudged]:
    r"""What a reward gets wrong of a table of cases; nothing is best.

    reward: a function, or its name as in a config ("reward.py:score", "warpup.rewards:number"). A case is paid where
    the reward says that it is correct, and where it does not say, where it gives more than 0. A group reward gets
    groups of one. cases: the numbers of `CASES` where none are given; a case need not have a kind. form: how the reward
    wants a completion written, such as r"<think> </think> <answer> {} </answer>"; the case stands in place of {}.
    columns: what the reward reads of an example beside "prompt" (empty here) and "answer".

    Raises TrainError if the reward cannot be loaded; ValueError on a form without {}.

        wrong = warpup.rewards.check("reward.py:score")
        assert not wrong, "\n".join(map(str, wrong))
    """
    from warpup.train.rewards.calls import Completion, Signature, attempt, attempt_together
    from warpup.train.rewards.loading import load_reward

    if "{}" not in form:
        raise ValueError(f"form: expected a text with {{}} in the place of the answer, got {form!r}")
    function = load_reward(reward)
    signature = Signature.of(function)
    cases = list(ALL) if cases is None else list(cases)
    wrong = []
    for case in cases:
        text = form.replace("{}", case.completion)
        ids = list(range(len(text.split()) or 1))  # a token is a word
        completion = Completion(text, text, ids, finished=True)
        example = {"prompt": "", **(columns or {}), "answer": case.answer}
        calls = list(signature.calls([completion], [example], 1))
        if signature.asynchronous:
            [[outcome]] = attempt_together(function, signature, calls, None)
        else:
            [outcome] = attempt(function, signature, calls[0])
        told = outcome.correct == outcome.correct  # not NaN
        paid = outcome.correct > 0 if told else outcome.reward > 0
        if outcome.error is not None or paid != case.right:
            wrong.append(Misjudged(case, outcome.reward, outcome.error))
    return wrong


def _cases(kind: str, answer: str, right: Sequence[str], wrong: Sequence[str]) -> list[Case]:
    pairs = [(text, True) for text in right] + [(text, False) for text in wrong]
    return [Case(text, answer, is_right, kind) for text, is_right in pairs]


CASES: dict[str, list[Case]] = {
    "numbers": _cases(
        "numbers", "72", ["72", "72.0", "72.00", " 72\n", "7.2e1", "144/2"], ["", "7", "720", "172", "72.5", "27"]
    )
    + _cases("numbers", "0.5", [".5", "0.50", "5e-1"], ["5", "0.05", "0"]),
    "fractions": _cases(
        "fractions", "1/2", ["1/2", "0.5", "2/4", r"\frac{1}{2}", r"\frac12", r"\dfrac{1}{2}"], ["1", "2", "2/1"]
    )
    + _cases("fractions", "5/2", ["2 1/2", "2.5", r"2\frac{1}{2}"], ["1", "2", "3/2", "1/2"])
    + _cases("fractions", "1/3", ["1/3", "2/6"], ["0.3", "0.333", "3"]),
    "percent": _cases("percent", "5%", ["5%", r"5\%", "5 percent", "0.05"], ["50%", "0.5%", "0.5", "500"])
    + _cases("percent", "0.05", ["5%", "0.05"], ["0.5%", "50%"]),
    "units": _cases("units", "5 cm", ["5", "5 cm", "5cm", r"5\text{ cm}", r"5\,\text{cm}"], ["50 cm", "-5 cm", "cm"])
    + _cases("units", "5", ["$5", "5 €", "£5", "5°", "5 cm^2", "5 apples"], ["$50", "$-5"]),
    "boxed text": _cases(
        "boxed text", "5", [r"\boxed{5}", r"$\boxed{5}$", r"\boxed{ 5 }", r"\boxed{4}, no: \boxed{5}", r"\boxed{5}."],
        [r"\boxed{-5}", r"\boxed{4}", r"\boxed{5}, no: \boxed{4}", r"\boxed{}"],
    )
    + _cases("boxed text", "1/2", [r"\boxed{\frac{1}{2}}"], [r"\boxed{\frac{2}{1}}"]),
    "final dots": _cases("final dots", "500", ["500.", "**500**.", "500.\n", "500.0."], ["50.", "5000.", "500.5."]),
    "signs": _cases("signs", "-72", ["-72", "\N{MINUS SIGN}72", "$-72$", "-72.0"], ["72", "+72", "\N{MINUS SIGN}7"])
    + _cases("signs", "72", ["72", "+72"], ["-72", "\N{MINUS SIGN}72"]),
    "thousands": _cases(
        "thousands", "28080", ["28,080", "28080", "28{,}080", r"28\,080", "28,080.0", "28\N{NO-BREAK SPACE}080"],
        ["28", "28.080", "80", "28,08", "2,808", "280,800"],
    ),
    "sentences": _cases(
        "sentences", "500", ["The answer is 500.", "I think so.\nIt is 500"],
        ["1500", "It was 500, now it is 400.", "I do not know", "It is 499 + 1 or so, no: 501"],
    ),
}  # fmt: skip
"""Hard cases by what is hard about them: each kind has right and wrong ones."""

ALL = tuple(case for kind in CASES.values() for case in kind)
