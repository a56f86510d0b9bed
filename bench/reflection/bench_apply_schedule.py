"""`apply_schedule_`: an indexed addition a request, against a Python closure for each and passes over the logits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from bench.harness.measure import Comparison, Work
from bench.harness.timing import Candidate
from bench.reflection.inputs import SHAPES, TOKENS, logits_of
from warpup.reflection import ReflectionBatch, ReflectionSchedule

GENERATED = {"cpu": 8192, "cuda": 8192, "quick": 50}
SCHEDULE = ReflectionSchedule("triangle", 5.0, 1200, tokens=TOKENS)
PASS, DENSE, CLOSURE = "one pass, read (max)", "one pass, in place (mul_)", "a Python processor a request"


def cases(device: str, size: str) -> Iterator[Comparison]:
    goals = {PASS: 50, CLOSURE: 20} if size == "cpu" else {}
    name = f"apply_schedule_ fp32 {list(SHAPES[size])} at {GENERATED[size]} tokens"
    yield Comparison(name, partial(apply_schedule, device, SHAPES[size], GENERATED[size]), goals)


def test_apply_schedule(case, measure):
    measure(case)


def closure(schedule):
    """What the papers release: called for each request with the list of its tokens and its row of logits."""
    ids, (end,) = list(schedule.tokens.ids), schedule.tokens.think_end
    amplitude, period = schedule.amplitude, schedule.period

    def process(tokens, logits):
        if end in tokens:
            return logits
        since_peak = (len(tokens) - period / 4) % period
        logits[ids] += amplitude * abs(4 * since_peak / period - 2) - amplitude
        return logits

    return process


def apply_schedule(device, shape, generated) -> Work:
    rows, _ = shape
    before = logits_of(device, shape, torch.float32)
    outputs = [[7] * (generated - r) for r in range(rows)]
    batch = ReflectionBatch(rows, SCHEDULE, device=device)
    batch.begin(range(rows), [[1]] * rows, outputs)
    mine, theirs, dense, process = before.clone(), before.clone(), before.clone(), closure(SCHEDULE)

    def python():
        for tokens, row in zip(outputs, theirs, strict=True):
            process(tokens, row)

    def added(logits):  # by the first call, which is the one that is checked
        return lambda _: ((logits - before)[:, : max(TOKENS.ids) + 1],)

    want = torch.zeros(rows, max(TOKENS.ids) + 1, dtype=torch.float64, device=device)
    want[:, list(TOKENS.ids)] = torch.tensor([[SCHEDULE.delta(len(o))] for o in outputs]).to(want)
    entry = len(TOKENS.ids) * (4 + 8) + 16 * 8 + 80
    return Work(
        {
            "warpup": Candidate(lambda: batch.apply_(mine), result=added(mine)),
            PASS: Candidate(lambda: torch.amax(before, -1), result=None),
            DENSE: Candidate(lambda: dense.mul_(1.0), result=None),
            CLOSURE: Candidate(python, result=added(theirs)),
        },
        bytes=rows * entry,
        reference=lambda: [want],
    )
