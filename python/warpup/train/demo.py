"""`warpup demo`: the two-stage effect on Knights & Knaves, from scratch, on a CPU.

Four arms, measured on held-out puzzles (no abstract puzzle of theirs is trained on):
    base             a model that knows the format alone (supervised on random answers)
    base + RLVR      reinforced from there on at most 100 puzzles
    warm-up          supervised on long chains of thought
    warm-up + RLVR   reinforced from there on the same puzzles
Two chains of two stages make them, so a seed is two recipes, each in its own folder and each resumable.
"""

import functools
import json
import os
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from warpup.data import (
    NAMES,
    REFLECTION_WORDS,
    example,
    knights_and_knaves,
    split,
    verify,
    word_tokenizer,
)

from . import checkpoint
from .arguments import at_least
from .errors import TrainError
from .evaluate import evaluate
from .log import ProgressBar, Report
from .parallel import run_aside, run_here
from .recipe import Recipe, locked, seed_everything, use_experts
from .rlvr import RLVR
from .run import HeldOut
from .warmup import Warmup

ARMS = {"base": ("base", "base + RLVR"), "warm": ("warm-up", "warm-up + RLVR")}  # chain -> before and after RLVR


@dataclass
class DemoArguments:
    """Train four arms on Knights & Knaves puzzles, print their table, write report.html."""

    out: str = "runs/demo"
    """Folder of the results; what is done there already is reused."""
    model: Literal["dense", "moe"] = "dense"
    """dense: a Llama; moe: fine-grained routed experts and a shared one, as many active parameters."""
    quick: bool = False
    """About a minute: smaller puzzles, fewer steps, rougher numbers."""
    seeds: int = 1
    """Repeat with so many seeds and show mean and spread."""
    jobs: int = 0
    """Chains trained side by side, each on one CPU thread; 0: as many as there are cores."""


@dataclass(frozen=True)
class Size:
    """How big a demo is. Chosen on two CPU cores; see the fields for what was compared."""

    people: int = 2
    depth: int = 3  # levels of a statement; at 2 there are too few puzzles, and warm-up learns them by heart
    kinds: tuple[str, ...] = ("leaf", "not", "and", "or", "implies", "iff")
    slips: float = 0.15  # chance that the teacher misjudges a check; its wrong traces are kept, as in the paper
    words: int = 24  # longest prompt
    pool: int = 12_000  # puzzles drawn, of which the short ones are kept
    held_out: int = 256
    puzzles: int = 100  # RLVR's training puzzles
    names: int = 10  # renamings of each, in turn
    chains: int = 20_000  # warm-up examples: training puzzles under other names
    base_steps: int = 150
    warm_steps: int = 1600
    rl_steps: int = 140  # the training reward still rises at 70
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    experts: int = 0  # routed ones of a layer, 3 of them active; 0: a dense model
    batch: int = 8  # learns faster per token than 16 and 32
    warm_lr: float = 2e-3
    rl_lr: float = 1e-4  # at 2e-4 the reward does not rise; 5e-4 collapses the chains
    temperature: float = 0.7  # of the rollouts and of the measurement
    prompts: int = 8
    samples: int = 16
    max_new_tokens: int = 192
    points: int = 5  # of each stage's curves
    curve: int = 128  # held-out puzzles behind each point of the curves


FULL = Size()
QUICK = Size(
    words=20, pool=6000, held_out=96, warm_steps=300, base_steps=60, rl_steps=12, samples=8, points=2, curve=48
)


@functools.cache
def puzzles_of(size: Size) -> tuple[list, list]:
    """(held out, others): puzzles with short prompts, no abstract puzzle (see `Puzzle.canonical_key`) on both sides."""
    drawn = knights_and_knaves(size.pool, people=size.people, depth=size.depth, kinds=size.kinds, seed=0)
    others, held_out = split([p for p in drawn if len(example(p)["prompt"].split()) <= size.words], size.held_out)
    return held_out, others


def puzzle_sets(size: Size, seed: int) -> dict[str, list[dict[str, str]]]:
    """Examples of a seed: "warm" and "base" to imitate, "rl" to be rewarded for, "held_out" to measure on.

    The held-out puzzles are the same for every seed. RLVR's puzzles are not imitated before (their mirror images may
    be) and come under several names.
    """
    held_out, others = puzzles_of(size)
    rng, names = random.Random(seed), random.Random(0)
    others = rng.sample(others, len(others))
    fresh, imitated = others[: size.puzzles], others[size.puzzles :]

    def renamed(puzzle, rng):
        return puzzle.renamed(rng.sample(NAMES, len(puzzle.names)))

    def told(style, slips=0.0):
        picks = (rng.choice(imitated) for _ in range(size.chains))
        return [example(renamed(puzzle, rng), style, seed=i, slips=slips) for i, puzzle in enumerate(picks)]

    return {
        "held_out": [example(renamed(puzzle, names)) for puzzle in held_out],
        "rl": [example(renamed(puzzle, rng)) for _ in range(size.names) for puzzle in fresh],
        "warm": told("long", size.slips),
        "base": told("random"),
    }


def fresh_model(size: Size, tokenizer, seed: int):
    """Untrained Llama of the demo's size, about 0.6 M parameters; with experts, a Qwen2-MoE whose four active experts,
    the shared one among them, have a quarter of the Llama's width each, as DeepSeekMoE cuts them."""
    import transformers

    seed_everything(seed)
    width = 8 * size.hidden // 3
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": size.hidden,
        "intermediate_size": width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "max_position_embeddings": 1024,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": False,
    }
    if not size.experts:
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
    config = transformers.Qwen2MoeConfig(
        **shape,
        num_experts=size.experts,
        num_experts_per_tok=3,
        moe_intermediate_size=width // 4,
        shared_expert_intermediate_size=width // 4,
        router_aux_loss_coef=0.01,
    )
    return use_experts(transformers.Qwen2MoeForCausalLM(config))


def run_chain(chain: str, seed: int, size: Size, out: Path, report: Report) -> dict[str, Any]:
    """Train one chain in `out` and measure it after each stage; a finished chain is read back."""
    done = out / "results.json"
    if done.exists():
        return json.loads(done.read_text())
    began = time.perf_counter()

    def say(stage, *numbers):
        report(f"seed {seed} {chain} {stage}", *numbers)

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
                temperature=size.temperature,
                lr=size.rl_lr,
                limit=None,
            ),
        ]
    )
    limits = {"max_new_tokens": size.max_new_tokens, "reflection_words": REFLECTION_WORDS}
    held_out = HeldOut(sets["held_out"][: size.curve], verify, points=size.points, **limits)
    recipe.run(model, tokenizer, out, seed=seed, report=say, held_out=held_out)

    results: dict[str, Any] = {"chain": chain, "seed": seed}
    for arm, stage in zip(ARMS[chain], recipe.names(), strict=True):
        checkpoint.load_weights(model, checkpoint.latest(out / stage))
        say(f"measure {arm}", 0, 1, {})
        found = evaluate(
            model,
            tokenizer,
            sets["held_out"],
            verify,
            temperature=size.temperature,
            seed=seed,
            traces=size.held_out,
            **limits,
        )
        say(f"measure {arm}", 1, 1, {"accuracy": found.avg})
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

    at_least(given, seeds=1, jobs=0)
    out, size = Path(given.out), QUICK if given.quick else FULL
    size = replace(size, experts=12) if given.model == "moe" else size
    began = time.perf_counter()
    with locked(out):
        check_size(out / "demo.json", size)
        tasks = [
            (chain, seed, size, out / f"seed-{seed}" / chain) for seed in range(given.seeds) for chain in reversed(ARMS)
        ]
        cores = os.cpu_count() or 1
        jobs = given.jobs or min(cores, len(tasks))
        with ProgressBar() as bar:
            results = run_here(run_chain, tasks, bar) if jobs == 1 else run_aside(run_chain, tasks, jobs, bar)
        sets = puzzle_sets(replace(size, chains=1000), 0)
        (out / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sets["held_out"]))
        teacher = fmean(verify(row["completion"], row).correct for row in sets["warm"])
        print_table(results)
        path = write_report(out, size, teacher, results)
    print(f"report: {path}   ({time.perf_counter() - began:.0f} s)")
    return path


def check_size(path: Path, size: Size) -> None:
    """Write the demo's size, or raise TrainError if the folder holds a demo of another size."""
    wanted = json.loads(json.dumps(asdict(size)))
    if path.exists() and json.loads(path.read_text()) != wanted:
        raise TrainError(
            f"{path.parent} holds a demo of another size (--quick, --model, or other settings): choose another --out"
        )
    path.write_text(json.dumps(wanted) + "\n")


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
