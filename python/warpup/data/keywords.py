"""Keywords of a text by RAKE, and the text with some of them taken out: answers of a known degree of badness."""

import math
import re
from collections import Counter, defaultdict

WORDS = """
a about above after again all also am an and any are as at be because been before being below between both but by can
could did do does doing down during each else few for from further had has have having he her here hers him his how i if
in into is it its just may me might more most must my no nor not now of off on once only or other our out over own same
shall she should so some such than that the their them then there these they this those through to too under until up us
very was we were what when where which while who whom whose why will with would you your
"""
STOP_WORDS = frozenset(WORDS.split())


def keywords(text: str) -> list[str]:
    """The phrases between stop words and punctuation, those of the highest score first, in lower case, each once.

    A word's score is degree / frequency, its degree the summed lengths of the phrases that it is in; a phrase's score
    is the sum of its words'. Equal ones stay in their order.

    Source: RAKE, Rose et al. 2010, "Automatic keyword extraction from individual documents".
    """
    phrases: list[tuple[str, ...]] = []
    for part in re.split(r"[^\w\s'-]+|\n", text.lower()):
        run: list[str] = []
        for word in [*part.split(), ""]:  # the empty word ends the last phrase, as a dash that stands alone does
            if re.search(r"\w", word) and word not in STOP_WORDS:
                run.append(word)
            elif run:
                phrases.append(tuple(run))
                run = []
    frequency = Counter(word for phrase in phrases for word in phrase)
    degree: dict[str, int] = defaultdict(int)
    for phrase in phrases:
        for word in phrase:
            degree[word] += len(phrase)
    score = {phrase: sum(degree[word] / frequency[word] for word in phrase) for phrase in phrases}
    return [" ".join(phrase) for phrase in sorted(score, key=lambda phrase: -score[phrase])]


def keyword_degrees(text: str, degrees: int = 4) -> list[tuple[str, int]]:
    """(text, j) for j = 0 .. degrees - 1: the text without the first j / degrees of its `keywords`, rounded up.
    What a head on the model's state learns to tell with `warpup.degree_loss`.

    Source: "Self-supervised Preference Optimization" (arXiv 2409.17791); it publishes no code, so which keywords go
    first is ours. Raises ValueError if degrees is below 2, or the text has too few keywords to tell them apart.
    """
    if degrees < 2:
        raise ValueError(f"keyword_degrees: expected at least 2 degrees, got {degrees!r}")
    found = keywords(text)
    if len(found) < degrees - 1:
        raise ValueError(
            f"keyword_degrees: {degrees} degrees need {degrees - 1} keywords, there are {found} in {text!r}"
        )
    return [(_without(text, found[: math.ceil(len(found) * j / degrees)]), j) for j in range(degrees)]


def _without(text: str, phrases: list[str]) -> str:
    for phrase in phrases:
        words = r"\s+".join(map(re.escape, phrase.split()))  # however many spaces are between them
        text = re.sub(rf"(?<!\w){words}(?!\w)", "", text, flags=re.IGNORECASE)
    return re.sub(r"[ \t]+", " ", text).strip()
