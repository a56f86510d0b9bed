"""`warpup demo`: the two-stage effect on Knights & Knaves, from scratch, on a CPU.

Four arms, measured on held-out puzzles (no abstract puzzle of theirs is trained on):
    base             a model that knows the format alone (supervised on random answers)
    base + RLVR      reinforced from there on at most 100 puzzles
    warm-up          supervised on long chains of thought
    warm-up + RLVR   reinforced from there on the same puzzles
Two chains of two stages make them, so a seed is two recipes, each in its own folder and each resumable.
"""

import json
import multiprocessing
import os
import queue
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from warpup.data import (
    NAMES,
    REFLECTION_WORDS,
    count_puzzles,
    example,
    knights_and_knaves,
    split,
    verify,
    word_tokenizer,
)

from . import checkpoint
from .errors import Interrupted, TrainError
from .evaluate import evaluate
from .log import ProgressBar
from .recipe import Recipe, locked, seed_everything
from .rlvr import RLVR
from .run import HeldOut
from .warmup import Warmup

ARMS = {"base": ("base", "base + RLVR"), "warm": ("warm-up", "warm-up + RLVR")}  # chain -> before and after RLVR


@dataclass
class DemoArguments:
    """Train four arms on Knights & Knaves puzzles, print their table, write report.html."""

    out: str = "runs/demo"
    """Folder of the results; what is done there already is reused."""
    quick: bool = False
    """About a minute: smaller puzzles, fewer steps, rougher numbers."""
    seeds: int = 1
    """Repeat with so many seeds and show mean and spread."""
    jobs: int = 0
    """Chains trained side by side, one CPU thread each; 0: as many as cores, or a single one that has all cores."""


@dataclass(frozen=True)
class Size:
    """How big a demo is. Chosen on two CPU cores; see the fields for what was compared."""

    people: int = 2
    width: int = 3
    kinds: tuple[str, ...] = ("leaf", "not", "and", "or", "implies", "iff")
    held_out: int = 256
    puzzles: int = 100  # RLVR's training puzzles
    chains: int = 20_000  # warm-up examples: training puzzles under other names
    base_steps: int = 150
    warm_steps: int = 600
    rl_steps: int = 60
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    batch: int = 16  # learns faster per token than 32
    warm_lr: float = 2e-3
    rl_lr: float = 1e-4  # 5e-4 collapses the chains
    prompts: int = 8
    samples: int = 16
    max_new_tokens: int = 160
    points: int = 6  # of each stage's curves
    curve: int = 128  # held-out puzzles behind each point of the curves


FULL = Size()
QUICK = Size(kinds=("leaf", "not"), held_out=128, warm_steps=150, base_steps=60, rl_steps=20)


def puzzle_sets(size: Size, seed: int) -> dict[str, list[dict[str, str]]]:
    """Examples of a seed: "warm" and "base" to imitate, "rl" to be rewarded for, "held_out" to measure on.

    The split is the same for every seed, so seeds share the held-out puzzles and differ in all else.
    """
    grammar = {"people": size.people, "width": size.width, "kinds": size.kinds}
    puzzles = knights_and_knaves(count_puzzles(size.people, width=size.width, kinds=size.kinds), seed=0, **grammar)
    train, test = split(puzzles, size.held_out, seed=0)
    names = random.Random(0)
    held_out = [example(p.renamed(names.sample(NAMES, len(p.names)))) for p in test]
    rng = random.Random(seed)
    rng.shuffle(train)
    fresh, train = train[: size.puzzles], train[size.puzzles :]  # RLVR's puzzles are new to the warmed model too

    def told(style):
        picks = (rng.choice(train) for _ in range(size.chains))
        return [example(p.renamed(rng.sample(NAMES, len(p.names))), style, seed=i) for i, p in enumerate(picks)]

    rl = [example(p.renamed(rng.sample(NAMES, len(p.names)))) for p in fresh]
    return {"held_out": held_out, "rl": rl, "warm": told("long"), "base": told("random")}


def fresh_model(size: Size, tokenizer, seed: int):
    """Untrained Llama of the demo's size, about 0.6 M parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    seed_everything(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=8 * size.hidden // 3,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def run_chain(chain: str, seed: int, size: Size, out: Path, report: Callable) -> dict[str, Any]:
    """Train one chain in `out` and measure it after each stage; a finished chain is read back."""
    done = out / "results.json"
    if done.exists():
        return json.loads(done.read_text())
    began = time.perf_counter()
    sets, tokenizer = puzzle_sets(size, seed), word_tokenizer()
    model = fresh_model(size, tokenizer, seed)
    steps = size.warm_steps if chain == "warm" else size.base_steps
    recipe = Recipe(
        [
            Warmup(sets[chain], steps=steps, batch_size=size.batch, lr=size.warm_lr),
            RLVR(
                sets["rl"],
                verify,
                steps=size.rl_steps,
                prompts=size.prompts,
                samples=size.samples,
                max_new_tokens=size.max_new_tokens,
                lr=size.rl_lr,
                limit=size.puzzles,
            ),
        ]
    )
    limits = {"max_new_tokens": size.max_new_tokens, "reflection_words": REFLECTION_WORDS}
    held_out = HeldOut(sets["held_out"][: size.curve], verify, points=size.points, **limits)
    recipe.run(model, tokenizer, out, seed=seed, report=report, held_out=held_out)

    results: dict[str, Any] = {"chain": chain, "seed": seed}
    for arm, stage in zip(ARMS[chain], recipe.names(), strict=True):
        checkpoint.load_weights(model, checkpoint.latest(out / stage))
        report(f"measure {arm}", 0, 1, {})
        found = evaluate(model, tokenizer, sets["held_out"], verify, seed=seed, traces=size.held_out, **limits)
        report(f"measure {arm}", 1, 1, {"accuracy": found.avg})
        results[arm] = asdict(found)
    results["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    results["seconds"] = time.perf_counter() - began
    temporary = done.with_suffix(".partial")
    temporary.write_text(json.dumps(results))
    temporary.replace(done)
    return results


def run_demo(given: DemoArguments) -> Path:
    """Train or reuse every chain, print the table, write the report; returns the report's path."""
    from .report import print_table, write_report

    if given.seeds < 1:
        raise TrainError(f"--seeds: expected at least 1, got {given.seeds}")
    out, size = Path(given.out), QUICK if given.quick else FULL
    began = time.perf_counter()
    with locked(out):
        check_size(out / "demo.json", size)
        tasks = [
            (chain, seed, size, out / f"seed-{seed}" / chain) for seed in range(given.seeds) for chain in reversed(ARMS)
        ]
        cores = os.cpu_count() or 1
        jobs = given.jobs or (min(cores, len(tasks)) if given.seeds > 1 else 1)
        with ProgressBar() as bar:
            results = run_here(tasks, bar) if jobs == 1 else run_aside(tasks, jobs, bar)
        save_held_out(out / "held_out.jsonl", size)
        print_table(results)
        path = write_report(out, size, results)
    print(f"report: {path}   ({time.perf_counter() - began:.0f} s)")
    return path


def run_here(tasks, bar) -> list[dict[str, Any]]:
    """Chain after chain in this process, with all its threads."""
    several = len({seed for _, seed, *_ in tasks}) > 1
    return [run_chain(chain, seed, size, out, labelled(bar, chain, seed, several)) for chain, seed, size, out in tasks]


def labelled(report: Callable, chain: str, seed: int, several: bool) -> Callable:
    """A report that says whose stage it is."""
    where = f"seed {seed} {chain}" if several else chain
    return lambda stage, step, steps, numbers: report(f"{where} {stage}", step, steps, numbers)


def run_aside(tasks, jobs: int, bar) -> list[dict[str, Any]]:
    """`jobs` chains at a time in processes of one thread each. Ctrl-C reaches them all; each saves, then stops."""
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the children stop by themselves; wait for them
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    pool = ProcessPoolExecutor(jobs, context, initializer=begin_child, initargs=(messages,))
    try:
        futures = [pool.submit(chain_in_child, task) for task in tasks]
        while True:
            finished, running = wait(futures, timeout=0.2, return_when=FIRST_EXCEPTION)
            drain(messages, bar)
            failed = next((f for f in finished if f.exception()), None)
            if failed or not running:
                break
        if failed:
            pool.shutdown(wait=True, cancel_futures=True)
            raise failed.exception()
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        os.environ.pop("OMP_NUM_THREADS")
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = threads
        signal.signal(signal.SIGINT, ignored)


def drain(messages, bar) -> None:
    """Show what the children said since the last call."""
    while True:
        try:
            bar(*messages.get_nowait())
        except queue.Empty:
            return


_messages = None  # in a child: where its progress goes


def begin_child(messages) -> None:
    """Set up a child process."""
    global _messages
    _messages = messages
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    from transformers.utils import logging

    logging.disable_progress_bar()


def chain_in_child(task) -> dict[str, Any]:
    """Run one chain in a child process."""
    chain, seed, size, out = task
    said = 0.0

    def report(stage, step, steps, numbers):
        nonlocal said
        if not multiprocessing.parent_process().is_alive():
            raise Interrupted("the demo's main process is gone; the same command resumes it")
        if step == steps or time.monotonic() - said > 0.5:
            said = time.monotonic()
            _messages.put((stage, step, steps, {k: v for k, v in numbers.items() if not isinstance(v, dict)}))

    try:
        return run_chain(chain, seed, size, out, labelled(report, chain, seed, True))
    except KeyboardInterrupt:
        raise Interrupted(f"stopped while measuring {chain}; the same command resumes it") from None


def check_size(path: Path, size: Size) -> None:
    """Write the demo's size, or raise TrainError if the folder holds a demo of another size."""
    wanted = json.loads(json.dumps(asdict(size)))
    if path.exists() and json.loads(path.read_text()) != wanted:
        raise TrainError(
            f"{path.parent} holds a demo of another size (--quick, or other settings): choose another --out"
        )
    path.write_text(json.dumps(wanted) + "\n")


def save_held_out(path: Path, size: Size) -> None:
    """Keep the held-out puzzles, for `warpup eval`."""
    rows = puzzle_sets(replace(size, chains=0), 0)["held_out"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def summary(results: list[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """arm -> number -> (mean, standard deviation over seeds; 0 for one seed)."""
    table = {}
    for chain, arms in ARMS.items():
        for arm in arms:
            runs = [result[arm] for result in results if result["chain"] == chain]
            table[arm] = {}
            for name in ("avg", "greedy", "reward", "format_ok", "length", "reflections"):
                values = [run[name] for run in runs]
                table[arm][name] = (fmean(values), stdev(values) if len(values) > 1 else 0.0)
    return table
