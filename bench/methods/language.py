"""Tiny language models on plain text: schedules, mixtures, forgetting, epochs, teachers, learning rates.

Arms that need no text, but sequences made for one question, are in `language_sequences.py`.
"""

from __future__ import annotations

import copy
import functools
import math
import random
import string
from collections.abc import Callable

import torch
from torch import Tensor

from bench.methods import language_sequences
from bench.methods.language_models import (
    Size,
    drawn,
    examples,
    fall,
    llama,
    losses,
    nll,
    rise,
    text_tokenizer,
    train,
    windows,
)
from bench.methods.language_rates import rates
from bench.methods.runner import Arm, Column
from bench.methods.stages import ALIKE, run
from warpup import divergence
from warpup.data import AioliSampler, BalancedSampler, UniformSampler
from warpup.metrics import enough, power_law, teacher_hacking
from warpup.optim import warmup_stable_decay
from warpup.train import Distill, Warmup, rollout

SIZE, QUICK = Size(), Size(steps=16, batch=4, width=16)
BOTH = ("docs", "code")


# ---- Stable, then decay: OctoThinker --------------------------------------------------------------------------------


def wsd(size: Size):
    return warmup_stable_decay(size.steps, size.steps // 4, warmup=size.steps // 16)


@functools.cache
def trunk(seed: int, size: Size):
    """Model and optimizer at the end of the stable part."""
    model = llama(size, seed)
    return model, train(model, drawn(BOTH, size.batch, seed), range(size.steps - size.steps // 4), wsd(size))


def stable(seed: int, size: Size) -> dict[str, float]:
    """At the constant rate to the end."""
    model, optimizer = copy.deepcopy(trunk(seed, size))
    rest = range(size.steps - size.steps // 4, size.steps)
    train(model, drawn(BOTH, size.batch, seed), rest, rise(size.steps), optimizer=optimizer)
    return losses(model)


def branch(seed: int, size: Size, parts: tuple[str, ...]) -> dict[str, float]:
    """From the stable part on, the same schedule, on a mixture of its own."""
    model, optimizer = copy.deepcopy(trunk(seed, size))
    rest = range(size.steps - size.steps // 4, size.steps)
    train(model, drawn(parts, size.batch, seed), rest, wsd(size), optimizer=optimizer)
    return losses(model)


def cosine(seed: int, size: Size) -> dict[str, float]:
    """A schedule that decays from the start, and has no branches."""
    model, first = llama(size, seed), size.steps // 16
    schedule = warmup_stable_decay(size.steps, size.steps - first, warmup=first)
    train(model, drawn(BOTH, size.batch, seed), range(size.steps), schedule)
    return losses(model)


# ---- A mixture that is learned: Aioli -------------------------------------------------------------------------------


def mixture(seed: int, size: Size, kind: str) -> dict[str, float]:
    """Two texts and one part of which nothing can be learned, letters at random."""
    letters = random.Random(seed)
    noise = ["".join(letters.choices(string.ascii_letters, k=2 * windows("docs").shape[1])) for _ in range(800)]
    rows = [{"prompt": "", "completion": said, "category": "noise"} for said in noise]
    rows += [row for part in BOTH for row in examples(windows(part)[:800], category=part)]
    categories = [row["category"] for row in rows]
    # At a few hundred steps a trial moves losses by hundredths, so weights follow them ten times faster than published.
    options = {"every": max(12, size.steps // 4), "rounds": 2, "steps": 2, "eta": 2.0}
    sampler = (
        AioliSampler(categories, **options, seed=seed) if kind == "aioli" else BalancedSampler(categories, seed=seed)
    )
    batch = 2 * size.batch  # the losses of its first and last batch are all that Aioli knows of a trial
    stage = Warmup(
        rows, steps=size.steps, batch_size=batch, lr=3e-3, lr_warmup=size.steps // 16, sampler=sampler, **ALIKE
    )
    model = run([stage], llama(size, seed), text_tokenizer(), seed)
    share = dict(zip(sampler.names, sampler.shares, strict=True))["noise"] if kind == "aioli" else 1 / 3
    return losses(model) | {"share": share}


# ---- Another domain, without forgetting: Mix-CPT --------------------------------------------------------------------


@functools.cache
def pretrained(seed: int, size: Size):
    """A model of the manual alone."""
    model = llama(size, seed)
    train(model, drawn(["docs"], size.batch, seed), range(size.steps), fall(size.steps))
    return model.eval()


def start(seed: int, size: Size) -> dict[str, float]:
    return losses(pretrained(seed, size))


def other_domain(seed: int, size: Size, kind: str) -> dict[str, float]:
    """From the manual to the source: NLL alone, or with a divergence from the model as it was, forward or swapped."""
    before, settings = pretrained(seed, size), {"steps": size.steps // 2, "batch_size": size.batch, "lr": 1e-3}
    settings |= {"data": examples(windows("code")), "lr_warmup": size.steps // 16} | ALIKE
    if kind == "nll":
        stage = Warmup(**settings, weight_decay=0.0)
    else:
        stage = Distill(**settings, teacher=copy.deepcopy(before), divergence=kind, nll_coef=3.0)
    return losses(run([stage], before, text_tokenizer(), seed))


# ---- One epoch, and when to stop ------------------------------------------------------------------------------------


@functools.cache
def epochs(seed: int, size: Size, count: int) -> tuple[dict[str, float], list[int], list[float], list[float]]:
    """The same number of steps over all windows once, or over a part of them `count` times; a learning curve: steps,
    and on held-out windows loss and percent of right tokens."""
    steps = min(size.steps, len(windows("docs")) // size.batch)
    rows = windows("docs")[: max(size.batch, steps * size.batch // count)]
    sampler, model = UniformSampler(len(rows), seed=seed), llama(size, seed)
    held_out, at, loss, right = windows("docs", held_out=True)[:96], [], [], []

    @torch.no_grad()
    def measure(step: int) -> None:
        if step % max(1, steps // 16) == 0:
            at.append(step)
            loss.append(float(nll(model, held_out)))
            found = model(input_ids=held_out).logits[:, :-1].argmax(-1)
            right.append(100 * float((found == held_out[:, 1:]).float().mean()))

    train(model, lambda i: rows[sampler.next(size.batch)], range(steps), rise(steps), after=measure)
    return losses(model), at, loss, right


def once(seed: int, size: Size) -> dict[str, float]:
    found, at, loss, right = epochs(seed, size, 1)
    known = max(3, len(at) // 2)
    law = power_law(at[:known], loss[:known])
    off = abs(float(law(at[-1])) - loss[-1])  # the law of the first half, at the end
    return found | {"accuracy": right[-1] / 100, "steps": at[-1], "off law": off}


def ten_times(seed: int, size: Size) -> dict[str, float]:
    found, at, _, right = epochs(seed, size, 10)
    return found | {"accuracy": right[-1] / 100, "steps": at[-1]}


def stopped(seed: int, size: Size) -> dict[str, float]:
    """Where two fits in a row foretell the end's accuracy alike, to half a point; the whole run if they never do."""
    _, at, _, right = epochs(seed, size, 1)
    last = enough(at, right, tau=0.5, at=at[-1]) or len(at)
    return {"accuracy": right[last - 1] / 100, "steps": at[last - 1]}


# ---- Teacher hacking ------------------------------------------------------------------------------------------------


def say(model, starts: Tensor, tokens: int, seed: int) -> Tensor:
    """(N, T + tokens): how the model goes on behind these tokens (N, T), without an end."""
    options = {"eos": 1, "pad": 0, "logit_bias": {0: -math.inf, 1: -math.inf}, "max_new_tokens": tokens}
    rolls = rollout(model, starts.tolist(), generator=torch.Generator().manual_seed(seed), **options)
    return torch.cat([starts, rolls.tokens], 1)


@functools.cache
def teacher(seed: int, size: Size) -> tuple:
    """A model that knows 48 texts of the oracle by heart, and these texts."""
    texts, model = say(pretrained(seed, size), windows("docs")[:48, :8], 24, seed), llama(size, seed + 1)
    train(model, lambda i: texts[i * 16 % 48 :][:16], range(size.steps), fall(size.steps))
    return model.eval(), texts


def hacking(seed: int, size: Size, online: float) -> dict[str, float]:
    """A student of a teacher that stands for an oracle, the pretrained model, but is not quite it: distilled on fixed
    completions of the teacher, or on what it says itself. Distances are measured on the oracle's own texts."""
    oracle, (proxy, texts) = pretrained(seed, size), teacher(seed, size)
    prompts, tokenizer = texts[:, :8], text_tokenizer()
    said = say(proxy, prompts, 24, seed + 1)
    pairs = zip(tokenizer.batch_decode(prompts), tokenizer.batch_decode(said[:, 8:]), strict=True)
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    seen = say(oracle, windows("docs", held_out=True)[:32, :8], 24, seed + 2)
    with torch.no_grad():
        targets = {"to teacher": proxy(input_ids=seen).logits, "to oracle": oracle(input_ids=seen).logits}
    curves: dict[str, list] = {"at": [], "to teacher": [], "to oracle": []}
    steps = max(8, size.steps // 2)

    @torch.no_grad()
    def measure(student, step: int) -> None:
        if step % (steps // 8) == 0:
            ours = student(input_ids=seen).logits
            curves["at"].append(step)
            for name, theirs in targets.items():
                curves[name].append(float(divergence(ours, theirs)[:, 7:-1].mean()))

    stage = Distill(
        rows, teacher=proxy, divergence="forward", online=online, max_new_tokens=24, steps=steps, batch_size=16,
        lr=3e-3, lr_schedule="constant", rows=16, **ALIKE,
    )  # fmt: skip
    run([stage], llama(size, seed + 2), tokenizer, seed, after=measure)
    found = {name: curves[name][-1] for name in targets}
    rises = curves["to oracle"][-1] - min(curves["to oracle"])
    hacked = teacher_hacking(curves["at"], curves["to teacher"], curves["to oracle"]) is not None
    return found | {"rise": rises, "hacked": float(hacked)} | {f"curve {name}": curves[name] for name in curves}


# ---- The table ------------------------------------------------------------------------------------------------------

COLUMNS = {
    "loss": Column(1, 3), "docs": Column(1, 3), "code": Column(1, 3), "share": Column(100), "accuracy": Column(100),
    "ood": Column(100), "steps": Column(1, 0), "off law": Column(1, 3), "to teacher": Column(1, 3),
    "to oracle": Column(1, 3), "rise": Column(1, 3), "hacked": Column(100, 0), "sensitivity": Column(1, 3),
    "confidence": Column(1, 2), "covered": Column(100, 0), "prefix": Column(1, 2),
}  # fmt: skip


def of(function: Callable[..., dict], *given) -> Callable[[int, Size], dict]:
    """The function of an arm, with what is its own."""
    return lambda seed, size: function(seed, size, *given)


ARMS = {
    "cosine": Arm(cosine, by="loss"),
    "stable, no decay": Arm(stable, by="loss", against="cosine"),
    "stable, decay on both": Arm(of(branch, BOTH), by="loss", against="cosine"),
    "stable, decay on docs": Arm(of(branch, ("docs",)), by="docs"),
    "stable, decay on code": Arm(of(branch, ("code",)), by="code"),
    "mixture even": Arm(of(mixture, "even"), by="loss"),
    "mixture Aioli": Arm(of(mixture, "aioli"), by="loss", against="mixture even"),
    "before code": Arm(start, by="docs"),
    "code, NLL": Arm(of(other_domain, "nll"), by="docs", against="before code"),
    "code, NLL and KL": Arm(of(other_domain, "forward"), by="docs", against="code, NLL"),
    "code, Mix-CPT": Arm(of(other_domain, "logit_swap"), by="docs", against="code, NLL"),
    "one epoch": Arm(once, by="accuracy"),
    "ten epochs of a tenth": Arm(ten_times, by="accuracy", against="one epoch"),
    "one epoch, stopped": Arm(stopped, by="accuracy", against="one epoch"),
    "teacher's texts": Arm(of(hacking, 0.0), by="to oracle"),
    "student's own texts": Arm(of(hacking, 1.0), by="to oracle", against="teacher's texts"),
    "rates": Arm(of(rates, "plain"), by="sensitivity"),
    "rates, z-loss": Arm(of(rates, "z"), by="sensitivity", against="rates"),
    "rates, QK norm": Arm(of(rates, "qk"), by="sensitivity", against="rates"),
    "rates, muParam": Arm(of(rates, "mu"), by="sensitivity", against="rates"),
    **language_sequences.ARMS,
}
