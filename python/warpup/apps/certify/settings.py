"""The settings of `CertifiedTraining`, and what of them cannot be: its loop is in training.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from warpup.train.checks import check_positive, check_unused
from warpup.train.errors import TrainError

STAGE = "certify"
TAPS = ("taps", "staps")


@dataclass
class CertifiedSettings:
    """Settings of certified training."""

    eps: float = 0.1
    """Largest change of each pixel, of pixels in [0, 1]."""
    epochs: int = 160
    """Passes over the training data; what does not fill a batch waits for another pass."""
    batch_size: int = 64
    """Images a step."""
    start: int = 2
    """Epochs at eps 0 before the warm-up."""
    warmup: int = 40
    """Epochs over which eps grows."""
    lr: float = 5e-4
    """Adam's learning rate."""
    decay: tuple[float, float] = (0.75, 0.875)
    """Shares of the epochs after which the rate falls to a fifth."""
    clip: float = 10.0
    """Largest norm of the gradient; 0 for no clipping."""
    init: bool = True
    """Draw the weights anew with the IBP initialisation."""
    regulariser: float = 0.5
    """Weight of the regularisers at the start of the warm-up; 0: none. CROWN-IBP's loss has none."""
    tau: float = 0.5
    """Their tolerance."""
    kappa: float = 0.0
    """Share of the clean loss at the full eps; it falls from 1 while eps grows. 0: robust loss alone throughout."""
    bounds: Literal["ibp", "crown-ibp", "sabr", "mtl-ibp", "taps", "staps"] = "ibp"
    """What the robust loss is of: interval bounds; CROWN-IBP, fading into them while eps grows; small boxes (SABR);
    interval bounds and attacked points, weighed by alpha (MTL-IBP); once eps is grown, attacks within the boxes of a
    layer (TAPS, and STAPS with small boxes)."""
    alpha: float = 0.5
    """MTL-IBP's share of the interval bounds' loss; the rest is the loss at attacked points."""
    sabr_ratio: float = 0.4
    """Radius of SABR's small boxes, as a share of eps."""
    shrinkage: float = 1.0
    """SABR's factor on the upper bounds of ReLUs whose input crosses 0, in the training loss; 1: none."""
    attacked_layers: int = 2
    """TAPS attacks within the boxes in front of the last so many linear layers and convolutions."""
    taps_weight: float = 5.0
    """Factor on the gradient of TAPS's attacked loss, beside that of the interval bounds."""
    population: bool = False
    """Before the measurement, take the statistics of batch normalisation anew, as averages over all training images."""
    points: int = 20
    """How often to measure on the test set."""
    save_every: int = 10
    """Epochs between checkpoints."""

    def check_settings(self) -> None:
        """Raise TrainError on settings that no data and no model can have."""
        check_positive(self, "eps", "epochs", "batch_size", "lr", "tau", "points", "save_every", place=STAGE)
        if self.start + self.warmup > self.epochs or min(self.start, self.warmup) < 0:
            raise TrainError(
                f"{STAGE}: start {self.start} and warm-up {self.warmup} must fit into the {self.epochs} epochs"
            )
        if self.eps > 1:
            raise TrainError(f"{STAGE}.eps: pixels are in [0, 1], got {self.eps:g} (8/255 is 0.031)")
        if self.clip < 0 or not all(0 <= share <= 1 for share in self.decay):
            raise TrainError(
                f"{STAGE}: expected a clip of at least 0 and decays that are shares of the epochs, in [0, 1], got "
                f"{self.clip!r} and {self.decay!r}"
            )
        for name in ("sabr_ratio", "shrinkage"):
            if not 0 < getattr(self, name) <= 1:
                raise TrainError(f"{STAGE}.{name}: expected above 0 and at most 1, got {getattr(self, name)!r}")
        if not (0 <= self.kappa <= 1 and self.regulariser >= 0):
            raise TrainError(
                f"{STAGE}: expected kappa in [0, 1] and a regulariser of at least 0, got {self.kappa!r} and "
                f"{self.regulariser!r}"
            )
        if self.attacked_layers < 1 or not 0 <= self.taps_weight < math.inf:
            raise TrainError(
                f"{STAGE}: expected attacked_layers of at least 1 and a finite taps_weight of at least 0, got "
                f"{self.attacked_layers!r} and {self.taps_weight!r}"
            )
        if self.bounds not in TAPS:
            why = f"bounds {self.bounds!r} attack no layer's boxes: leave it out, or choose bounds taps or staps"
            check_unused(self, "attacked_layers", "taps_weight", place=STAGE, why=why)
        else:
            why = "TAPS's loss has no clean share: leave it out, or choose other bounds"
            check_unused(self, "kappa", place=STAGE, why=why)
        if self.bounds not in ("sabr", "staps"):
            why = f"bounds {self.bounds!r} takes no small boxes: leave it out, or choose bounds sabr or staps"
            check_unused(self, "sabr_ratio", "shrinkage", place=STAGE, why=why)
        if not 0 <= self.alpha <= 1:
            raise TrainError(f"{STAGE}.alpha: expected from 0 to 1, got {self.alpha!r}")
        if self.bounds == "mtl-ibp":
            check_unused(
                self, "kappa", place=STAGE, why="MTL-IBP weighs by alpha: leave it out, or choose other bounds"
            )
        else:
            why = f"bounds {self.bounds!r} weigh no attacked points: leave it out, or choose bounds mtl-ibp"
            check_unused(self, "alpha", place=STAGE, why=why)
        if self.bounds == "crown-ibp":
            why = "CROWN-IBP's loss has neither regularisers nor a clean share: leave it out, or choose other bounds"
            if self.regulariser:
                check_unused(self, "regulariser", place=STAGE, why=why)
            check_unused(self, "tau", "kappa", place=STAGE, why=why)
        if not self.regulariser:
            check_unused(self, "tau", place=STAGE, why="it is the regularisers', whose weight is 0: leave it out")
