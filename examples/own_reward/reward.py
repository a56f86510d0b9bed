"""A reward of your own: one function of the completion and its example."""

from warpup.data import Verdict


def score(completion: str, example: dict) -> Verdict:
    """1 for the right sum, less the farther it is off, 0 for what is no number. `example` is the row of the data, with
    every column that it has. A plain number would do; a Verdict also says what counts as right, for the reports."""
    words = completion.split()
    if not words or not words[0].isdigit():
        return Verdict(reward=0.0, format_ok=False, parsed=False, correct=False)
    off = abs(int(words[0]) - int(example["answer"]))
    return Verdict(reward=1 / (1 + off), format_ok=True, parsed=True, correct=off == 0)
