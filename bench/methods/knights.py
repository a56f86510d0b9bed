"""Knights & Knaves: what a warmed model gains from a short RLVR, by curriculum, reward, credit, turns, or without it.

The model and the puzzles are those of `warpup demo`, smaller. Each seed has one warm-up, and every arm goes on from a
copy of it for a few dozen steps.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import torch

from bench.methods.runner import Arm, Column
from bench.methods.stages import ALIKE, run
from warpup.apps.demo import settings as demo
from warpup.apps.demo.chain import fresh_model
from warpup.apps.demo.puzzles import puzzle_sets
from warpup.data import verify, word_tokenizer
from warpup.metrics import pass_at
from warpup.train import RLVR, StepReward, Turn, Warmup, rollout

TOKENIZER = word_tokenizer(extra=("[Easy]", "[Hard]"))
SAY = "bad . ?"  # what a wrong answer is told
LOGGED = 8  # completions of a puzzle


@dataclass(frozen=True)
class Size:
    """What the warm-up imitates, "warm" chains or "base" answers at random; steps of it, of RLVR, of what is learned
    from a log; prompts and completions of a step of RLVR; RLVR's puzzles, and those that are held out; the longest
    completion."""

    imitates: str = "warm"
    warm_steps: int = 600
    rl_steps: int = 24
    log_steps: int = 48
    prompts: int = 8
    samples: int = 8
    puzzles: int = 64
    held_out: int = 128
    tokens: int = 128
    hidden: int = 96
    layers: int = 2

    def of_demo(self) -> demo.Size:
        shared = {name: getattr(self, name) for name in ("puzzles", "held_out", "hidden", "layers")}
        return demo.Size(words=20, pool=6000, names=1, chains=8 * self.warm_steps, **shared)


SIZE = Size()
QUICK = Size(
    imitates="base", warm_steps=60, rl_steps=2, log_steps=4, prompts=4, samples=4, puzzles=8, held_out=16, tokens=16,
    hidden=32, layers=1,
)  # fmt: skip


# ---- What all arms share --------------------------------------------------------------------------------------------


@functools.cache
def warmed(seed: int, size: Size):
    """The model that imitates a teacher's chains, RLVR's puzzles by length of their prompts, and the held-out ones."""
    small = size.of_demo()
    sets = puzzle_sets(small, seed)
    puzzles = [row | {"category": len(row["prompt"].split()) // 4} for row in sets["rl"]]
    puzzles.sort(key=lambda row: row["category"])  # the shortest are the first task of a curriculum over tasks
    stage = Warmup(sets[size.imitates], steps=size.warm_steps, batch_size=small.batch, lr=small.warm_lr, **ALIKE)
    return run([stage], fresh_model(small, TOKENIZER, seed), TOKENIZER, seed), puzzles, sets["held_out"]


def say(model, rows: Sequence[dict], size: Size, seed: int, copies: int, temperature: float = 0.7):
    """(texts, lengths) of `copies` completions of each prompt, as lists of lists."""
    prompts = [TOKENIZER(row["prompt"])["input_ids"] for row in rows]
    rolls = rollout(
        model, prompts, eos=TOKENIZER.eos_token_id, pad=TOKENIZER.pad_token_id, copies=copies, rows=256,
        max_new_tokens=size.tokens, temperature=temperature, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    said = [rolls.completion(n) for n in range(len(rows) * copies)]
    texts, lengths = TOKENIZER.batch_decode(said, skip_special_tokens=True), rolls.lengths.tolist()
    return [[of_all[n : n + copies] for n in range(0, len(said), copies)] for of_all in (texts, lengths)]


def measured(model, seed: int, size: Size, *, temperature: float = 0.7) -> dict[str, float]:
    """Of held-out puzzles: how many of four completions are right, of how many puzzles one of the four, and tokens."""
    _, _, rows = warmed(seed, size)
    texts, lengths = say(model.eval(), rows, size, seed, 4, temperature)
    right = [sum(verify(t, row).correct for t in said) for row, said in zip(rows, texts, strict=True)]
    found = {"pass@1": pass_at(1, right, 4).value, "pass@4": pass_at(4, right, 4).value}
    return found | {"tokens": fmean(n for each in lengths for n in each)}


def in_two_turns(model, seed: int, size: Size) -> dict[str, float]:
    """The same, and how many likeliest answers are right at once or after a wrong one was told so."""
    _, _, rows = warmed(seed, size)
    (first, _), right = say(model.eval(), rows, size, seed, 1, 0.0), 0
    wrong = [
        row | {"prompt": after(row["prompt"], said)}
        for row, (said,) in zip(rows, first, strict=True)
        if not verify(said, row).correct
    ]
    if wrong:
        again, _ = say(model, wrong, size, seed, 1, 0.0)
        right = sum(verify(said, row).correct for row, (said,) in zip(wrong, again, strict=True))
    return measured(model, seed, size) | {"second try": 1 - (len(wrong) - right) / len(rows)}


def after(prompt: str, said: str) -> str:
    """The prompt of a second turn."""
    return f"{prompt} {said} <eos> {SAY}"


def rlvr(size: Size, rows: Sequence[dict], **settings) -> RLVR:
    """The stage as the demo has it; settings are an arm's own."""
    shared = {
        "steps": size.rl_steps, "prompts": size.prompts, "samples": size.samples, "max_new_tokens": size.tokens,
        "temperature": 0.7, "lr": 1e-4, "rows": 256, "patience": 1000, **ALIKE,
    }  # fmt: skip
    return RLVR(rows, **shared | settings)


def imitate(size: Size, rows: Sequence[dict], lr: float = 3e-4, **settings) -> Warmup:
    """A stage on logged or written completions."""
    shared = {"steps": size.log_steps, "batch_size": 16, "lr": lr, "lr_warmup": size.log_steps // 8, **ALIKE}
    return Warmup(rows, **shared | settings)


def reinforced(seed: int, size: Size, **settings) -> dict[str, float]:
    model, puzzles, _ = warmed(seed, size)
    return measured(run([rlvr(size, puzzles, **settings)], model, TOKENIZER, seed), seed, size)


# ---- Length, by a tag of difficulty; progress of steps --------------------------------------------------------------


def tagged(seed: int, size: Size) -> dict[str, float]:
    """AdaCtrl: a short warm-up on chains that begin with a tag, hard for the longer half; then its reward."""
    model, puzzles, _ = warmed(seed, size)
    border = median(len(row["completion"].split()) for row in puzzles)
    rows = [
        row | {"completion": f"{'[Hard]' if len(row['completion'].split()) > border else '[Easy]'} {row['completion']}"}
        for row in puzzles
    ]
    stages = [imitate(size, rows), rlvr(size, puzzles, reward="warpup.rewards:difficulty(check='warpup.data:verify')")]
    return measured(run(stages, model, TOKENIZER, seed), seed, size)


def progress(seed: int, size: Size) -> dict[str, float]:
    """SPA: a copy of the model learns what each sentence of a logged completion gave to its reward, and pays that."""
    model, puzzles, _ = warmed(seed, size)
    rows = [
        {"prompt": row["prompt"], "completions": said, "labels": verdict.reward}
        for row, said, verdict in logged(seed, size)
    ]
    with tempfile.TemporaryDirectory() as folder:
        judge = StepReward(rows, loss="progress", separator=".", steps=size.log_steps, lr=3e-4, **ALIKE)
        run([judge], model, TOKENIZER, seed, folder=folder)
        pays = f"warpup.rewards:reward_model(folder='{Path(folder) / '1-stepreward/reward'}', credit='step')"
        stage = rlvr(size, puzzles, reward=["warpup.data:verify", pays], advantage="gae")
        return measured(run([stage], model, TOKENIZER, seed), seed, size)


# ---- Two turns, with the verifier's word between them ---------------------------------------------------------------


@functools.cache
def logged(seed: int, size: Size) -> list[tuple]:
    """(puzzle, completion, verdict): to each of RLVR's puzzles the teacher's chain and seven of the warmed model's."""
    model, puzzles, _ = warmed(seed, size)
    texts, _ = say(model, puzzles, size, seed + 1000, LOGGED - 1, 1.0)
    pairs = zip(puzzles, texts, strict=True)
    return [(row, said, verify(said, row)) for row, several in pairs for said in (row["completion"], *several) if said]


def rise(seed: int, size: Size) -> dict[str, float]:
    """RISE: first answers of the model itself and a teacher's second ones, each counts exp(reward)."""
    model, _, _ = warmed(seed, size)
    rows = []
    for row, said, verdict in logged(seed, size):
        rows.append({"prompt": row["prompt"], "completion": said, "reward": verdict.reward})
        if not verdict.correct:
            rows.append({"prompt": after(row["prompt"], said), "completion": row["completion"], "reward": 2.0})
    stage = imitate(size, rows, objective="exp_weighted", score="reward")
    return in_two_turns(run([stage], model, TOKENIZER, seed), seed, size)


@functools.cache
def corrected(seed: int, size: Size):
    """STeP: a wrong answer, the word on it, a teacher's right one, of which the last alone is learned."""
    model, _, _ = warmed(seed, size)
    rows = []
    for row, said, verdict in logged(seed, size):
        if not verdict.correct:
            before = f"{said} <eos> {SAY} "
            whole = before + row["completion"]
            rows.append({"prompt": row["prompt"], "completion": whole, "learned": [[len(before), len(whole)]]})
    return run([imitate(size, rows, spans="learned")], model, TOKENIZER, seed)


def in_turns(seed: int, size: Size, stages: Sequence[dict] = ()) -> dict[str, float]:
    """Stages of RLVR from the model of STeP on, which knows second turns; the steps are shared between them."""
    _, puzzles, _ = warmed(seed, size)
    steps = max(1, size.rl_steps // max(1, len(stages)))
    trained = [rlvr(size, puzzles, steps=steps, **settings) for settings in stages]
    model = run(trained, corrected(seed, size), TOKENIZER, seed) if trained else corrected(seed, size)
    return in_two_turns(model, seed, size)


class TwoRoles:
    """One role answers, and the other one answers again where that was wrong; each is paid for its own."""

    def reset(self, example: dict) -> str:
        self.example, self.role = example, 0
        return example["prompt"]

    def step(self, completion: str) -> Turn:
        verdict, speaker = verify(completion, self.example), self.role
        self.role = 1 - speaker
        over = speaker == 1 or verdict.correct
        return Turn(SAY, {speaker: verdict.reward}, over, float(verdict.correct))


RETRY = {"environment": f"warpup.environments:Retry(say='{SAY}')", "credit": "turn"}
ROLES = {"environment": TwoRoles, "credit": "role"}
HELD = {"kl_coef": 0.1, "credit": "turn"}
SCORE = (
    HELD | {"environment": f"warpup.environments:Revise(say='{SAY}', first=0, bonus=0)"},
    HELD | {"environment": f"warpup.environments:Revise(say='{SAY}', bonus=10)"},
)


# ---- Without RLVR ---------------------------------------------------------------------------------------------------


def from_log(seed: int, size: Size, kind: str) -> dict[str, float]:
    """Logged completions, learned by their advantage over the same puzzle's others (A-LoL), or those that are right,
    all alike."""
    (model, _, _), log = warmed(seed, size), logged(seed, size)
    rewards: dict[str, list[float]] = {}
    for row, _, verdict in log:
        rewards.setdefault(row["prompt"], []).append(verdict.reward)
    rows = []
    for row, said, verdict in log:
        better = verdict.reward - fmean(rewards[row["prompt"]])
        if better > 0 if kind == "a_lol" else verdict.correct:
            rows.append({"prompt": row["prompt"], "completion": said, "advantage": better})
    own = {"objective": "a_lol", "score": "advantage", "sampler": "weighted:score=advantage"} if kind == "a_lol" else {}
    return measured(run([imitate(size, rows, 1e-4, **own)], model, TOKENIZER, seed), seed, size)


def at_once(seed: int, size: Size, attempts: int) -> dict[str, float]:
    """Answers without a chain, by heart from RLVR's puzzles: by NLL, or for one right in `attempts` (DCO)."""
    model, puzzles, _ = warmed(seed, size)
    rows = [row | {"completion": f"<think> </think> <answer> {row['answer']} </answer>"} for row in puzzles]
    own = {"objective": "dco", "attempts": attempts} if attempts > 1 else {}
    return measured(run([imitate(size, rows, 1e-3, **own)], model, TOKENIZER, seed), seed, size, temperature=1.0)


# ---- The table ------------------------------------------------------------------------------------------------------

COLUMNS = {"pass@1": Column(100), "pass@4": Column(100), "tokens": Column(), "second try": Column(100)}


def of(run: Callable[..., dict], by: str, against: str = "", **given) -> Arm:
    """The arm of a function of (seed, size) that is given something of its own."""
    return Arm(functools.partial(run, **given), by, against)


def length(**options) -> str:
    given = ", ".join(f"{name}={value}" for name, value in options.items())
    return f"warpup.rewards:cosine_length(check='warpup.data:verify', max_length={SIZE.tokens}{given and ', '}{given})"


rl = functools.partial(of, reinforced, "pass@1", "uniform")
two = functools.partial(of, by="second try")
PUBLISHED = length(correct=(1.0, 0.1), wrong=(-1.0, -0.1), exceeded=-1.0)

ARMS = {
    "warm-up alone": of(lambda seed, size: measured(warmed(seed, size)[0], seed, size), "pass@1"),
    "uniform": of(reinforced, "pass@1", "warm-up alone"),
    "SEC": rl(sampler="sec"),
    "DUMP": rl(sampler="dump"),
    "recency": rl(sampler=f"recency:per_task={SIZE.rl_steps * SIZE.prompts // 3}"),
    "pass rate": rl(sampler="pass_rate"),
    "cosine length": rl(reward=length()),
    "half cosine": rl(reward=PUBLISHED),
    "difficulty": of(tagged, "pass@1", "uniform"),
    "GAE": rl(advantage="gae"),
    "segment": rl(advantage="segment", branches=2, segment_every=16),
    "tree": rl(advantage="tree", branches=2),
    "SPA": of(progress, "pass@1", "GAE"),
    "two turns, STeP": two(in_turns),
    "two turns, RISE": two(rise, against="two turns, STeP"),
    "two turns, Retry": two(in_turns, against="two turns, STeP", stages=[RETRY]),
    "two turns, SCoRe": two(in_turns, against="two turns, Retry", stages=SCORE),
    "two turns, roles": two(in_turns, against="two turns, Retry", stages=[ROLES]),
    "log, right ones": of(from_log, "pass@1", "warm-up alone", kind="right"),
    "log, A-LoL": of(from_log, "pass@1", "log, right ones", kind="a_lol"),
    "at once, NLL": of(at_once, "pass@4", attempts=1),
    "at once, DCO": of(at_once, "pass@4", "at once, NLL", attempts=4),
}
