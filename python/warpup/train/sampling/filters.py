"""`Filters`: how a token is drawn, as settings. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from warpup.reflection.sampling import FILTERS, sampling_row

from ..errors import TrainError


@dataclass(frozen=True)
class Filters:
    """How a token is drawn: penalties, temperature, and what is cut off before the draw, as `sampling_row` has it.
    TrainError on what cannot be."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    top_h: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0

    def __post_init__(self):
        try:
            sampling_row(**asdict(self))
        except ValueError as error:
            raise TrainError(str(error)) from error

    @property
    def cut(self) -> bool:
        """Whether anything is cut off."""
        return any(getattr(self, name) != off for name, off in FILTERS.items())


DRAWN_BY = tuple(field.name for field in fields(Filters) if field.name != "temperature")  # settings of RLVR too
