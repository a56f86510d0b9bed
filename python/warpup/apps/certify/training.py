"""Certified training: a classifier whose answer provably does not change within eps of each input.

Interval bounds with the short warm-up of Shi et al. 2021 (arXiv 2103.17268): IBP initialisation, batch normalisation,
epsilon that grows over a few epochs, and regularisers of the boxes' widths and of the ReLUs' balance until it is grown.
MTL-IBP is the convex combination of De Palma et al. 2024 (arXiv 2305.13991); TAPS is by Mao et al. 2023 (arXiv
2305.04574).
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from warpup._evaluating import evaluating
from warpup.interval import (
    bound,
    crown_ibp_loss,
    epsilon_schedule,
    ibp_init_,
    kappa_schedule,
    margin_loss,
    pgd,
    relu_balance_loss,
    sabr_box,
    taps_loss,
    tightness_loss,
)
from warpup.interval.network.ibp_warmup import WEIGHTED
from warpup.train import checkpoint
from warpup.train.errors import Interrupted, TrainError
from warpup.train.files import locked, read_table, write_text
from warpup.train.log import MetricsLog, Report, quiet
from warpup.train.run import StageRun
from warpup.train.run_config import check_config, describe_model, seed_everything

from .images import Images, pixels, shifted
from .measurement import errors, population_statistics
from .settings import STAGE, TAPS, CertifiedSettings


@dataclass
class CertifiedTraining(CertifiedSettings):
    """Settings of certified training; `fit` trains any module that `warpup.interval.bound` takes and that ends in a
    linear layer."""

    def fit(
        self, model: nn.Module, data: Images, out: str | Path, *, seed: int = 0, attack: bool = False,
        report: Report = quiet,
    ) -> dict[str, Any]:  # fmt: skip
        """Train `model` in place in folder `out`, measure it on the test set, and return the numbers.

        Called again with the same arguments it goes on where it stopped, bit for bit, and a finished run is only
        loaded. The numbers (also in results.json): clean and verified error at eps, with attack=True the error under
        PGD and `broken`, the number of verified images that PGD broke all the same (0, or the bounds are wrong), and
        `curve`, the same at several eps. Raises TrainError on wrong use, Interrupted after Ctrl-C.
        """
        out = Path(out)
        self.check(data, model)
        device = next(model.parameters()).device
        with locked(out):
            config = {"seed": seed, "model": describe_model(model), "data": data.fingerprint, **asdict(self)}
            check_config(out / "config.json", json.loads(json.dumps(config)))
            data, began = data.to(device), time.perf_counter()
            newest = checkpoint.latest(out / STAGE)
            if newest and checkpoint.step_of(newest) == self.epochs:
                checkpoint.load_weights(model, newest)
            else:
                seed_everything(seed)
                if self.init:
                    ibp_init_(model)
                log = MetricsLog(out / "metrics.jsonl")
                try:
                    with StageRun(STAGE, out / STAGE, model, None, seed=seed, log=log, report=report) as run:
                        self.train(run, data)
                except Interrupted as stop:
                    raise Interrupted(f"{stop}; the same command resumes it") from None
            if self.population:
                population_statistics(model, data, self.batch_size)
            model.eval()
            return self._results(model, data, out / "results.json", attack, time.perf_counter() - began)

    def _results(self, model, data: Images, path: Path, attack: bool, seconds: float) -> dict[str, Any]:
        """Numbers of a trained model, from the file if they are there."""
        if path.exists() and ("pgd" in (known := read_table(path, "eps", "curve", "clean", "verified")) or not attack):
            return known
        results = {"eps": self.eps, **errors(model, data, self.eps, attack)}
        grid = [self.eps * i / 6 for i in range(10)]
        results["curve"] = [{"eps": eps, **errors(model, data, eps, attack)} for eps in grid]
        results |= {"parameters": sum(p.numel() for p in model.parameters()), "seconds": seconds}
        write_text(path, json.dumps(results))
        return results

    def check(self, data: Images, model: nn.Module) -> None:
        """Raise TrainError on settings, data and models that do not go together."""
        self.check_settings()
        if self.population and not any(isinstance(m, _BatchNorm) for m in model.modules()):
            raise TrainError(f"{STAGE}.population: the model has no batch normalisation: leave it out")
        if self.bounds in TAPS:
            self.parts(model)
        if self.batch_size > len(data.x_train):
            raise TrainError(f"{STAGE}.batch_size: {self.batch_size} is more than the {len(data.x_train)} images")
        with evaluating(model), torch.no_grad():
            example = data.normal(pixels(data.x_test[:1])).to(next(model.parameters()).device)
            outputs = model(example).shape[-1]
        if outputs < data.classes:
            raise TrainError(f"{STAGE}: the model has {outputs} outputs, the labels go up to {data.classes - 1}")

    def parts(self, model: nn.Module) -> tuple[nn.Sequential, nn.Sequential]:
        """TAPS's two parts of the model: what boxes go through, and the last `attacked_layers` with what is between."""
        at = [i for i, m in enumerate(model) if isinstance(m, WEIGHTED)] if isinstance(model, nn.Sequential) else []
        if not isinstance(model, nn.Sequential) or len(at) < self.attacked_layers:
            raise TrainError(
                f"{STAGE}.attacked_layers: bounds {self.bounds} divide an nn.Sequential in front of the last "
                f"{self.attacked_layers} of its linear layers and convolutions, got {type(model).__name__} with "
                f"{len(at)}"
            )
        split = at[-self.attacked_layers]
        first, rest = model[:split], model[split:]
        assert isinstance(first, nn.Sequential)
        assert isinstance(rest, nn.Sequential)
        return first, rest

    def train(self, run: StageRun, data: Images) -> None:
        """The loop: one step of the run is a pass over the images. Nothing waits for the device within a pass."""
        model = run.model.train()
        batches = len(data.x_train) // self.batch_size
        # eps is 0 at first, grows over the warm-up, batch by batch, and stays: a fresh network's boxes are too wide to
        # learn from at the full eps.
        grow = epsilon_schedule(self.eps, self.start * batches, self.warmup * batches)
        optimizer = torch.optim.Adam(model.parameters(), self.lr, fused=True)
        parameters = [p for p in model.parameters() if p.requires_grad]
        parts = self.parts(model) if self.bounds in TAPS else None

        for i in run.steps(self.epochs, self.save_every, optimizer):
            run.stepped = True  # a pass that fails halfway is not saved
            rate = self.lr * 0.2 ** sum(i >= share * self.epochs for share in self.decay)
            for group in optimizer.param_groups:
                group["lr"] = rate
            # The order of a pass depends on seed and pass alone, so that a resumed run needs no cursor.
            order = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(run.seed * 100_003 + i))
            order, total, said = order.to(data.x_train.device), 0.0, time.monotonic()
            for j in range(batches):
                rows = order[j * self.batch_size : (j + 1) * self.batch_size]
                x = pixels(data.x_train[rows])
                if data.augment:
                    x = shifted(x, run.generator)
                eps = grow(i * batches + j + 1)
                loss = self.loss(model, data, x, data.y_train[rows], eps, run.generator, parts)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, self.clip or math.inf)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                total += loss.detach()
                if time.monotonic() - said > 10:
                    said = time.monotonic()
                    run.report(f"epoch {i + 1}", j + 1, batches, {})
            loss = float(total) / batches
            if not math.isfinite(loss):
                raise TrainError(
                    f"{STAGE}: the loss is {loss} in epoch {i + 1}; a longer warm-up, a lower learning rate, batch "
                    "normalisation and the IBP initialisation keep it finite"
                )
            due = i == 0 or (i + 1) * self.points // self.epochs > i * self.points // self.epochs
            run.record({"loss": loss, "eps": eps, "lr": rate, **(self.measure(model, data) if due else {})})

    def loss(
        self, model, data: Images, x: Tensor, labels: Tensor, eps: float, generator,
        parts: tuple[nn.Sequential, nn.Sequential] | None = None,
    ) -> Tensor:  # fmt: skip
        """Loss of a batch of pixels in [0, 1] at the eps of this step. parts: what `parts` gave, for TAPS."""
        clean = data.normal(x)
        if eps == 0:
            return F.cross_entropy(model(clean), labels)
        center, radius = data.box(x, eps)
        options = {"clean": clean, "kappa": kappa_schedule(eps, self.eps, self.kappa) if self.kappa else 0.0}
        if self.bounds == "crown-ibp":
            beta = kappa_schedule(eps, self.eps)
            if beta > 0:
                return crown_ibp_loss(model, center, radius, labels, beta=beta, clean=clean)
        if self.bounds == "mtl-ibp":  # the attacked points go beside the box, and batch normalisation is theirs
            with evaluating(model):
                points = pgd(model, center, radius, labels, steps=8, step_size=0.5, generator=generator)
            options = {"clean": points, "kappa": 1 - self.alpha}
        if self.bounds in ("sabr", "staps"):
            center, radius = sabr_box(model, center, radius, labels, ratio=self.sabr_ratio, generator=generator)
            options["shrinkage"] = self.shrinkage
        if parts is not None and eps == self.eps:  # boxes alone while eps grows, as the authors do
            first, rest = parts
            options = {"clean": clean, "shrinkage": self.shrinkage, "weight": self.taps_weight, "generator": generator}
            return taps_loss(first, rest, center, radius, labels, **options)
        fading = self.regulariser * (1 - eps / self.eps)
        if fading <= 0:
            return margin_loss(model, center, radius, labels, **options)
        loss, sums = margin_loss(model, center, radius, labels, **options, sums=True)
        width = tightness_loss(sums, radius.mean(), self.tau)
        return loss + fading * (width + relu_balance_loss(sums, self.tau))

    @torch.no_grad()
    def measure(self, model, data: Images) -> dict[str, float]:
        """Errors on the test set at the final eps, and the mean width in front of each ReLU over the input's."""
        model.eval()
        found = errors(model, data, self.eps)
        center, radius = data.box(pixels(data.x_test[:256]), self.eps)
        sums = bound(model, center, radius, sums=True)[-1]
        model.train()
        widths = {f"width_{i}": float(s.radius / s.count / radius.mean()) for i, s in enumerate(sums, 1)}
        return {"clean": found["clean"], "verified": found["verified"], **widths}
