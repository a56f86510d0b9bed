"""Family `reflection`: a schedule on the logits of its tokens, and the step that draws the next token."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import torch

from bench.harness.measure import Comparison, Work
from bench.harness.timing import Candidate
from warpup.reflection import ReflectionBatch, ReflectionSchedule, ReflectionTokens
from warpup.reflection.sample_step import reference_sample_step

SHAPES = {"cpu": (64, 151936), "cuda": (64, 151936), "quick": (4, 1000)}
GENERATED = {"cpu": 8192, "cuda": 8192, "quick": 50}
TOKENS = ReflectionTokens(tuple(range(5, 900, 60)), (1,), (2,))
SCHEDULE = ReflectionSchedule("triangle", 5.0, 1200, tokens=TOKENS)
PASS, DENSE, CLOSURE = "one pass, read (max)", "one pass, in place (mul_)", "a Python processor a request"
CHAIN = "transformers' processors, softmax, multinomial"
FILTERS = {
    "T=.7 top-k 50 top-p .95": {"temperature": 0.7, "top_k": 50, "top_p": 0.95},
    "T=.7 top-p .95": {"temperature": 0.7, "top_p": 0.95},
    "T=1": {"temperature": 1.0},
}


def cases(device: str, size: str) -> Iterator[Comparison]:
    shape, full = SHAPES[size], size != "quick"
    goals = {PASS: 50, CLOSURE: 20} if size == "cpu" else {}
    name = f"apply_schedule_ fp32 {list(shape)} at {GENERATED[size]} tokens"
    yield Comparison(name, partial(apply_schedule, device, shape, GENERATED[size]), goals)
    for dtype, short in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        for filters in FILTERS if dtype == torch.float32 else list(FILTERS)[:1]:
            goals = {CHAIN: 4 if device == "cpu" else 10} if full and dtype == torch.float32 else {}
            name = f"sample_step {short} {list(shape)} {filters}"
            yield Comparison(name, partial(sample_step, device, shape, dtype, filters), goals)


def test_reflection(case, measure):
    measure(case)


@lru_cache(1)
def logits_of(device, shape, dtype):
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(device, dtype)


# ---- apply_schedule_ ------------------------------------------------------------------------------------------------


def closure(schedule):
    """What the papers release: called for each request with the list of its tokens and its row of logits."""
    ids, (end,) = list(schedule.tokens.ids), schedule.tokens.think_end
    amplitude, period = schedule.amplitude, schedule.period

    def process(tokens, logits):
        if end in tokens:
            return logits
        turned = (len(tokens) - period / 4) % period
        logits[ids] += amplitude * abs(4 * turned / period - 2) - amplitude
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


# ---- sample_step ----------------------------------------------------------------------------------------------------


def chain(temperature, top_k=0, top_p=1.0):
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    listed = [TemperatureLogitsWarper(temperature)] if temperature != 1 else []
    listed += [TopKLogitsWarper(top_k)] if top_k else []
    listed += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    processors = LogitsProcessorList(listed)

    def step(logits):
        scores = processors(None, logits.float())
        return torch.multinomial(torch.softmax(scores, -1), 1)[:, 0], scores

    return step


def sample_step(device, shape, dtype, filters) -> Work:
    """The mass that the filters leave is compared: the draws are keyed differently, and their distribution is a matter
    of the tests. Of equal logits, common in bfloat16, transformers cuts some at the nucleus's edge."""
    rows, _ = shape
    options, logits = FILTERS[filters], logits_of(device, shape, dtype)
    batch = ReflectionBatch(rows, tokens=TOKENS, device=device)
    for r in range(rows):
        batch.set_sampling([r], seed=r, **options)
    theirs = chain(**options)

    def left(output):
        p = torch.softmax(logits.double() / options["temperature"], -1)
        return (p.where(output[1] > -torch.inf, 0.0).sum(-1).float(),)

    return Work(
        {
            "warpup": Candidate(lambda: batch.sample(logits), result=lambda step: (step.kept,)),
            CHAIN: Candidate(lambda: theirs(logits), result=left),
        },
        bytes=logits.numel() * logits.element_size(),
        dtype=dtype,
        reference=lambda: [reference_sample_step(logits.double(), batch.tables, torch.arange(rows)).kept],
    )
