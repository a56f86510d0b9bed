"""Stop strings: texts that end a completion, wherever the borders of its tokens are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_stop


class StopStrings:
    """A completion ends with the token that completes one of the texts, which stays in it, as does what else that
    token holds. It is looked for in the text with special tokens, and of the completion alone, not of its prompt."""

    def __init__(self, tokenizer, texts: Sequence[str]):
        check_stop(texts, "stop")
        self.tokenizer, self.texts = tokenizer, tuple(texts)
        # The end of a completion is enough to look at. A token is a byte at least, so this many hold the longest text,
        # and some more, since a tokenizer may treat the first tokens that it decodes in a way of their own.
        self.longest = max(len(text.encode()) for text in self.texts)
        self.tail = self.longest + 4

    def completed(self, tokens: Tensor, among: Tensor) -> Tensor:
        """(R,) bool: in which rows of tokens (R, n), of completions so far, the last token completes a text. Only rows
        `among` (R,) bool are looked at; in none of them has a text been completed before."""
        found = torch.zeros_like(among)
        rows = among.nonzero().squeeze(1).tolist()
        for row, ids in zip(rows, tokens[among, -self.tail :].tolist(), strict=True):
            text = self._decoded(ids)
            if len(text.encode()) < self.longest and tokens.shape[1] > self.tail:
                text = self._decoded(tokens[row].tolist())  # tokens without any text are among the last
            found[row] = any(stop in text for stop in self.texts)
        return found

    def _decoded(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)


def stop_strings(tokenizer, texts: Sequence[str]) -> StopStrings | None:
    """StopStrings of these texts; None of none."""
    return StopStrings(tokenizer, texts) if texts else None
