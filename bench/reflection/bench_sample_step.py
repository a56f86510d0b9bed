"""`sample_step` against the chain of transformers' processors and a multinomial draw."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from bench.harness.measure import Comparison, Work
from bench.harness.timing import Candidate
from bench.reflection.inputs import SHAPES, TOKENS, logits_of
from warpup.reflection import ReflectionBatch
from warpup.reflection.sample_step import reference_sample_step

CHAIN = "transformers' processors, softmax, multinomial"
FILTERS = {
    "T=.7 top-k 50 top-p .95": {"temperature": 0.7, "top_k": 50, "top_p": 0.95},
    "T=.7 top-p .95": {"temperature": 0.7, "top_p": 0.95},
    "T=1": {"temperature": 1.0},
}


def cases(device: str, size: str) -> Iterator[Comparison]:
    shape, full = SHAPES[size], size != "quick"
    for dtype, short in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        for filters in FILTERS if dtype == torch.float32 else list(FILTERS)[:1]:
            goals = {CHAIN: 4 if device == "cpu" else 10} if full and dtype == torch.float32 else {}
            name = f"sample_step {short} {list(shape)} {filters}"
            yield Comparison(name, partial(sample_step, device, shape, dtype, filters), goals)


def test_sample_step(case, measure):
    measure(case)


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
