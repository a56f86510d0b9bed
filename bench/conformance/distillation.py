"""Divergences from a teacher's top K tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.conformance.row import Row
from tests.divergence import test_topk_divergence as peers
from tests.divergence.test_divergence import randn
from warpup import divergence, topk_divergence


def distillation_rows(verl: Any) -> Iterator[Row]:
    student, teacher = (randn(6, 300, seed=seed).double() / 2 for seed in (0, 1))

    def ours(ids, **options):
        logp = teacher.log_softmax(-1).gather(-1, ids)
        return lambda: peers.with_gradient(topk_divergence, student, ids, logp, **options)

    likeliest, own = teacher.topk(8).indices, student.topk(8).indices
    logp = teacher.log_softmax(-1).gather(-1, likeliest)
    yield Row(
        "topk_divergence", "verl", "forward_kl_topk, log-probs above its clamp of -10",
        lambda: peers.verl_loss(verl, student.float(), likeliest, logp.float()), ours(likeliest),
    )  # fmt: skip
    yield Row(
        "topk_divergence, reverse", "TRL", "sdpo, distillation_add_tail",
        lambda: peers.trl(student, teacher, tail=True), ours(own, kind="reverse"),
        "what is not listed is one outcome more", ours(own, kind="reverse", tail=True),
    )  # fmt: skip
    yield Row(
        "topk_divergence, reverse", "TRL", "sdpo", lambda: peers.trl(student, teacher),
        ours(own, kind="reverse"), "the list alone, renormalised: `divergence` of its logits",
        lambda: peers.with_gradient(
            lambda z: divergence(z.gather(-1, own), teacher.gather(-1, own), kind="reverse"), student
        ),
    )  # fmt: skip
