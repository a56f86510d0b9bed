"""A list that grows in memory and, once it is large, in a temporary file: rows of data sets and their tokens."""

from __future__ import annotations

import pickle
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

IN_MEMORY = 64 << 20  # bytes; what is larger goes to a file, which the system keeps in memory as far as there is some


class Spool(Sequence[Any]):
    """Appended to at its end, read anywhere; each read gives a new object. 8 bytes of memory an item beyond the limit.

    The file is in the system's folder for such files (the environment variable TMPDIR names another) and is gone with
    the process.
    """

    def __init__(self, items: Iterable[Any] = ()):
        self.file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115  it lives as long as the list
        self.begins = array("q", [0])
        self.order: Sequence[int] | None = None  # of the items, where it is not that of their coming
        for item in items:
            self.append(item)

    def append(self, item: Any) -> None:
        self.file.seek(self.begins[-1])
        self.begins.append(self.begins[-1] + self.file.write(pickle.dumps(item, pickle.HIGHEST_PROTOCOL)))

    def __len__(self) -> int:
        return len(self.begins) - 1 if self.order is None else len(self.order)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = range(len(self))[index] if self.order is None else self.order[index]
        self.file.seek(self.begins[place])
        return pickle.loads(self.file.read(self.begins[place + 1] - self.begins[place]))

    def reorder(self, order: Sequence[int]) -> None:
        """From now on item i is what was item order[i]; one may stand several times, or not at all."""
        self.order = order
