"""Continual digits: five pairs of classes, one after the other, and what is left of the first when the last is learned.

Arms "known: ..." are told the task of an image, when they learn and when they are tested, and choose between its two
classes; the others choose among all ten. What is fixed (weights of penalties, densities) was chosen on seed 100.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from bench.methods import continual_known as known
from bench.methods import continual_replay as replay
from bench.methods.continual_known import TASKS, Plain, Size, Stream
from bench.methods.nets import batches
from bench.methods.runner import Arm, Column, Numbers
from warpup.metrics import continual_scores, stability_gap

SIZE, QUICK = Size(), Size(steps=20, batch=8, hidden=16, every=10, memory=20)
COLUMNS = {name: Column(100, 1) for name in ("ACC", "BWT", "FWT", "F", "min-ACC", "WC-ACC")}


def learn(learner: type[Plain], seed: int, size: Size) -> Numbers:
    """Learns the stream, and measures all tasks on the way."""
    stream = Stream(seed)
    learning = learner(stream, size, seed)

    @torch.no_grad()
    def measured() -> list[float]:
        found = []
        for task, (x, y) in enumerate(stream.test):
            logits = learning.own(learning.predict(x, task), y)
            found.append(float((logits.argmax(-1) == y).float().mean()))
        return found

    initial, curves, matrix, ends = measured(), [], [], []
    for task, (x, y) in enumerate(stream.train):
        learning.begin(task, x, y)
        for step, indices in enumerate(batches(len(x), size.batch, size.steps, seed * TASKS + task)):
            learning.step(x[indices], y[indices])
            if (step + 1) % size.every == 0 and step + 1 < size.steps:
                curves.append(measured())
        learning.end(x, y)
        matrix.append(measured())
        curves.append(matrix[-1])
        ends.append(len(curves) - 1)
    scores = continual_scores(matrix, initial=initial)
    gap = stability_gap(np.array(curves).T, ends)
    numbers = {"ACC": scores.acc, "BWT": scores.bwt, "FWT": scores.fwt, "F": scores.forgetting}
    return numbers | {"min-ACC": gap.min_acc, "WC-ACC": gap.wc_acc, "first task": [each[0] for each in curves]}


def panel(axis, results: dict[str, list[Numbers]]) -> None:
    """The first pair of classes, all the way: how far it falls when another begins, and what comes back."""
    for name in ("fine-tuning", "replay", "HPCR", "TAME", "rehearsal, all alike"):
        if name in results:
            curve = 100 * np.mean([numbers["first task"] for numbers in results[name]], 0)
            axis.plot(range(1, len(curve) + 1), curve, label=name, linewidth=1.2)
    axis.set_xlabel("evaluations")
    axis.set_ylabel("accuracy of the first task, %")
    axis.legend(fontsize=7)


def arm(learner: type[Plain], against: str = "") -> Arm:
    return Arm(partial(learn, learner), "ACC", against)


ARMS = {
    "known: fine-tuning": arm(Plain),
    "known: EWC": arm(known.EWC, "known: fine-tuning"),
    "known: EMA-merge": arm(known.Merge, "known: fine-tuning"),
    "known: rate / sqrt(task)": arm(known.Rsqrt, "known: fine-tuning"),
    "known: EMA-merge, rate / sqrt(task)": arm(known.MergeRsqrt, "known: fine-tuning"),
    "known: sparse masks, random growth": arm(known.Sparse, "known: fine-tuning"),
    "known: sparse masks, growth by gradient": arm(known.SparseGradient, "known: fine-tuning"),
    "known: RFT": arm(known.Reinforce, "known: fine-tuning"),
    "known: RFT, never solved left out": arm(known.ReinforceSolved, "known: RFT"),
    "known: hypernetwork": arm(known.Hypernetwork),
    "known: HyperCRL": arm(known.HyperCRL, "known: hypernetwork"),
    "known: all data so far": arm(replay.RehearseKnown, "known: fine-tuning"),
    "fine-tuning": arm(known.PlainUnknown),
    "TAME": arm(replay.TAME, "fine-tuning"),
    "replay": arm(replay.Replay, "fine-tuning"),
    "PCR": arm(replay.PCR, "replay"),
    "HPCR": arm(replay.HPCR, "PCR"),
    "replay of disturbed images": arm(replay.Augmented, "replay"),
    "view batches": arm(replay.Views, "replay of disturbed images"),
    "rehearsal, all alike": arm(replay.RehearseAlike, "fine-tuning"),
    "rehearsal, power law": arm(replay.Rehearse, "rehearsal, all alike"),
    "rehearsal, exponential": arm(replay.RehearseExponential, "rehearsal, power law"),
}
