"""The arms of `warpup certify`: what is trained on which net; the presets of known data, the ablation's parts."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from warpup.interval import cnn7
from warpup.train.log import Report
from warpup.train.run_config import seed_everything

from .images import Images, load_images
from .training import CertifiedTraining

# The settings of the paper for its data sets, and what suits 1437 digits.
PRESETS = {
    "digits": CertifiedTraining(),
    "mnist": CertifiedTraining(eps=0.4, batch_size=256, start=1, warmup=20, epochs=70, decay=(50 / 70, 60 / 70)),
    "cifar10": CertifiedTraining(eps=8 / 255, batch_size=128, start=2, warmup=80, epochs=160),
}


@dataclass(frozen=True)
class Net:
    """Size of CNN-7."""

    width: int = 64
    """Channels of the first convolution."""
    hidden: int = 512
    """Units of the linear layer before the last."""
    batch_norm: bool = True
    """Batch normalisation after every layer but the last."""


SMALL = Net(16, 128)


@dataclass(frozen=True)
class Arm:
    """One row of a table: what is trained, on one seed after another."""

    name: str
    training: CertifiedTraining
    net: Net

    @property
    def folder(self) -> str:
        words = re.findall(r"\w+", self.name)
        return f"eps-{self.training.eps:.4g}/{'-'.join(words)}"


# name -> (batch normalisation, IBP initialisation, weight of the regularisers)
PARTS = {
    "default init, no BN": (False, False, 0.0),
    "+ BN": (True, False, 0.0),
    "+ BN + init": (True, True, 0.0),
    "+ BN + init + regularisers": (True, True, 0.5),
}
ABLATION = (
    CertifiedTraining(eps=0.05, epochs=120, warmup=30),
    CertifiedTraining(eps=0.1, epochs=160, warmup=40),
)


def ablation() -> list[Arm]:
    """The ablation's arms."""
    return [
        Arm(name, replace(training, init=init, regulariser=regulariser), replace(SMALL, batch_norm=batch_norm))
        for training in ABLATION
        for name, (batch_norm, init, regulariser) in PARTS.items()
    ]


def model_for(data: Images, net: Net, seed: int) -> torch.nn.Module:
    """Untrained CNN-7 for the images."""
    seed_everything(seed)
    channels, size = data.x_train.shape[1:3]
    return cnn7(channels, size, data.classes, width=net.width, hidden=net.hidden, batch_norm=net.batch_norm)


def run_arm(
    arm: Arm, source: str, seed: int, device: str, attack: bool, out: Path, report: Report
) -> dict[str, Any]:  # fmt: skip
    """Train and measure one arm on one seed."""
    data = load_images(source)
    model = model_for(data, arm.net, seed).to(device)

    def say(stage: str, step: int, steps: int, numbers: dict[str, Any]) -> None:
        report(f"{arm.name} eps {arm.training.eps:.3g} seed {seed}: {stage}", step, steps, numbers)

    found = arm.training.fit(model, data, out, seed=seed, attack=attack, report=say)
    return {"arm": arm.name, "seed": seed, "folder": str(out), **found}
