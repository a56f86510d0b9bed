"""Which token ids a schedule acts on, and the markers by which a trace tells that it thinks, answers or writes code."""

from __future__ import annotations

import string
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

WORDS = ("wait", "but", "alternatively", "however", "hmm")
THINK_MARKERS = (
    ("<think>", "</think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<reasoning>", "</reasoning>"),
)
CODE_MARKERS = ("<code>", "</code>")
LONGEST_MARKER = 8


@dataclass(frozen=True)
class ReflectionTokens:
    """ids: the tokens of a schedule, each once. The markers are token sequences of at most 8; empty: there is none."""

    ids: tuple[int, ...]
    think_start: tuple[int, ...] = ()
    think_end: tuple[int, ...] = ()
    code_start: tuple[int, ...] = ()
    code_end: tuple[int, ...] = ()

    def __post_init__(self):
        ids = tuple(sorted({int(i) for i in self.ids}))
        if any(i < 0 for i in ids):
            raise ValueError(f"ids: expected token ids, 0 or more, got {ids[0]}")
        object.__setattr__(self, "ids", ids)
        for name in ("think_start", "think_end", "code_start", "code_end"):
            marker = tuple(int(i) for i in getattr(self, name))
            if len(marker) > LONGEST_MARKER or any(i < 0 for i in marker):
                raise ValueError(f"{name}: expected at most {LONGEST_MARKER} token ids, got {list(marker)}")
            object.__setattr__(self, name, marker)

    @property
    def markers(self) -> tuple[tuple[int, ...], ...]:
        return self.think_start, self.think_end, self.code_start, self.code_end

    def as_dict(self) -> dict:
        return {name: list(value) for name, value in asdict(self).items()}

    @classmethod
    def of(cls, tokens: ReflectionTokens | Iterable[int]) -> ReflectionTokens:
        return tokens if isinstance(tokens, ReflectionTokens) else cls(tuple(tokens))

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer,
        words: Sequence[str] = WORDS,
        *,
        case: bool = True,
        space: bool = True,
        punctuation: bool = True,
        think: tuple[str, str] | None = None,
        code: tuple[str, str] | None = CODE_MARKERS,
    ) -> ReflectionTokens:
        """Every single token of the vocabulary that is one of `words` but for case, leading space and punctuation.

        Args:
            tokenizer: a transformers tokenizer.
            words: the words; found in any case (`case`), behind a leading space (`space`; else only without), with
                punctuation around them (`punctuation`): "wait" finds `Wait`, ` wait`, `Wait,`.
            think: begin and end marker of thinking; None finds them among those that models use, or none.
            code: the same for code; the default is left out where it is not two tokens, None leaves it out.

        Raises:
            ValueError: a word or a given marker that the tokenizer cannot spell, or no word is a single token.

        Warns: about a word that takes several tokens. It is left out: its first token begins other words too.
        """
        vocabulary = {i: text for text, i in tokenizer.get_vocab().items()}
        special = set(tokenizer.all_special_ids)
        found: set[int] = set()
        for word in words:
            near = [i for i, text in vocabulary.items() if word.casefold() in text.casefold() and i not in special]
            strings = {i: tokenizer.convert_tokens_to_string([vocabulary[i]]) for i in near}
            mine = {i for i in near if _is(word, strings[i], vocabulary[i], case, space, punctuation)}
            if not mine:
                spelled = tokenizer.encode(word, add_special_tokens=False)
                if not spelled or tokenizer.unk_token_id in spelled:
                    raise ValueError(f"words: the tokenizer cannot spell {word!r}")
                pieces = tokenizer.convert_ids_to_tokens(spelled)
                warnings.warn(
                    f"{word!r} takes {len(spelled)} tokens ({pieces}) and is left out",
                    stacklevel=2,
                )
            found |= mine
        if not found:
            raise ValueError(f"words: none of {list(words)} is a single token of this tokenizer")
        return cls(tuple(found), *find_markers(tokenizer, think, code))

    @classmethod
    def exactly(
        cls,
        tokenizer,
        texts: Sequence[str],
        *,
        think: tuple[str, str] | None = None,
        code: tuple[str, str] | None = CODE_MARKERS,
    ) -> ReflectionTokens:
        """These strings and no variant of them, as a paper lists them; ValueError names those that are not one
        token. `think`, `code`: as for `from_tokenizer`."""
        ids = {text: tokenizer.encode(text, add_special_tokens=False) for text in texts}
        wrong = [t for t, i in ids.items() if len(i) != 1 or i[0] == tokenizer.unk_token_id]
        if wrong:
            raise ValueError(f"texts: not single tokens of this tokenizer: {wrong}")
        return cls(tuple(i[0] for i in ids.values()), *find_markers(tokenizer, think, code))


def _is(word: str, text: str, token: str, case: bool, space: bool, punctuation: bool) -> bool:
    """Whether a token is a variant of the word that is wanted. Sentencepiece drops a token's leading space when it
    makes a string of it alone, so the token itself is asked too."""
    spaced = text[:1].isspace() or token[:1] in "▁Ġ"
    if spaced and not space:
        return False
    text = text.strip()
    text = text.strip(string.punctuation) if punctuation else text
    return text.casefold() == word.casefold() if case else text == word


def find_markers(tokenizer, think: tuple[str, str] | None, code: tuple[str, str] | None) -> tuple[tuple[int, ...], ...]:
    """The ids of the four markers. A pair that is given must be there; the usual ones are looked for."""

    def spelled(pair) -> tuple[tuple[int, ...], ...] | None:
        ids = tuple(tuple(tokenizer.encode(text, add_special_tokens=False)) for text in pair)
        fits = all(0 < len(i) <= LONGEST_MARKER and tokenizer.unk_token_id not in i for i in ids)
        return ids if fits else None

    def demanded(name: str, pair) -> tuple[tuple[int, ...], ...]:
        ids = spelled(pair)
        if ids is None:
            raise ValueError(f"{name}: the tokenizer cannot spell {pair} in at most {LONGEST_MARKER} tokens")
        return ids

    def found(candidates) -> tuple[tuple[int, ...], ...]:
        """The first pair of single tokens: any tokenizer can spell the others somehow, in pieces."""
        all_spelled = [ids for pair in candidates if (ids := spelled(pair)) is not None]
        return next((ids for ids in all_spelled if all(len(i) == 1 for i in ids)), ((), ()))

    if think is None:
        # In pieces only the commonest pair is trusted.
        thinking = found(THINK_MARKERS)
        thinking = thinking if any(thinking) else spelled(THINK_MARKERS[0]) or ((), ())
    else:
        thinking = demanded("think", think)
    if code is None:
        return *thinking, (), ()
    return *thinking, *(found([code]) if tuple(code) == CODE_MARKERS else demanded("code", code))
