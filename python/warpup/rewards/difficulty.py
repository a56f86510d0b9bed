"""A reward of thought that fits the task: a tag says how hard the model takes it for, and easy ones are to be short."""

from collections.abc import Callable, Mapping, Sequence

from .answers import Grade
from .shape import half_cosine, judge


def difficulty(
    completions: Sequence[str],
    examples: Sequence[Mapping],
    lengths: Sequence[int],
    *,
    check: str | Callable = "warpup.rewards:number",
    easy: str = "[Easy]",
    hard: str = "[Hard]",
    threshold: float = 0.5,
    length_weight: float = 1.0,
    tag_weight: float = 1.0,
) -> list[Grade]:
    """For each completion of a prompt: 1 if right and -1 if not, plus `length_weight` times a length reward, plus
    `tag_weight` times a tag reward.

    The prompt is easy if more than `threshold` of the group are right. Tag reward: 1 if the completion begins with the
    tag, `easy` or `hard`, that says so, 0 with the other one, -1 with none. Length reward: (1 + cos(pi L / Lmax)) / 2
    if the completion says easy and is right, else 0; L in tokens, Lmax the longest of the group.
    check: the reward that says what is right, as in `cosine_length`. Raises ValueError on a threshold outside [0, 1),
    and on tags of which one begins with the other.

    Source: "AdaCtrl: Towards Adaptive and Controllable Reasoning via Difficulty-Aware Budgeting" (arXiv 2505.18822) and
    its code; threshold and weights are ours.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold: expected 0 to below 1, got {threshold}")
    if easy.startswith(hard) or hard.startswith(easy):
        raise ValueError(f"easy, hard: expected two tags that can be told apart, got {easy!r} and {hard!r}")
    right = [judge(check, completion, example) for completion, example in zip(completions, examples, strict=True)]
    tags = [next((t for t in (easy, hard) if text.lstrip().startswith(t)), None) for text in completions]
    fitting, longest = (easy if sum(right) / max(1, len(right)) > threshold else hard), max([1, *lengths])
    grades = []
    for correct, tag, length in zip(right, tags, lengths, strict=True):
        tagged = -1.0 if tag is None else float(tag == fitting)
        short = half_cosine(length, longest, 1.0, 0.0) if correct and tag == easy else 0.0
        grades.append(Grade((1.0 if correct else -1.0) + length_weight * short + tag_weight * tagged, correct))
    return grades
