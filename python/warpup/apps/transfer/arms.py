"""The arms: their data, their training by `warpup train`, and how right they are on held-out problems."""

import json
import math
import random
import shlex
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from warpup.data import Puzzle
from warpup.train import evaluate, load_model
from warpup.train.commands import train as warpup_train
from warpup.train.errors import Interrupted, TrainError
from warpup.train.files import write_text

from .domains import KNIGHTS, Row, own_row, plain, puzzle_rows, puzzles, score, task_rows, usable
from .settings import ARMS, TASKS, Size, slug

OTHERS, OWN = ("siblings", KNIGHTS), ("leg_counting", "gsm_symbolic")
SHOWN = {"greedy": "greedy", "avg": "sampled", "format_ok": "in the form"}
WORDS = ("Wait,", "contradiction.")  # counted in answers
STOP = "</answer>"


@dataclass(frozen=True)
class Run:
    """What was asked for, and what all of its parts need to know."""

    model: str
    out: Path
    size: Size
    target: str
    control: str
    device: str
    chat: bool  # whether the model has a chat template

    def domains(self) -> list[str]:
        """What is measured, the target first."""
        return list(dict.fromkeys([self.target, *OTHERS]))


def make_arms(run: Run, seeds: int) -> None:
    """Train and measure every arm that is not there yet."""
    # What all seeds share: held-out problems, the base's accuracy, and its own answers in the asked form.
    to_learn, problems, held_out = split_rows(run)
    write_rows(run.out / "data", held_out)
    if unmeasured(run.out / "base", held_out):
        measure(run, run.out / "base", run.model, held_out, 0)
    own = own_answers(run)

    for seed in range(seeds):
        folder = run.out / f"seed-{seed}"
        data = learn_from(run, to_learn, problems, own, seed)
        write_rows(folder / "data", data)
        for arm, (before, stage) in ARMS.items():
            place = folder / slug(arm)
            if stage and unmeasured(place, held_out):
                start = run.model if before == "base" else str(folder / slug(before) / "model")
                config = {"model": start, "out": str(place), "seed": seed, "device": run.device}
                if before == "base" and run.size.rank:  # the others go on with these adapters
                    config["lora"] = {"r": run.size.rank, "alpha": 2.0 * run.size.rank}
                train(config | settings_of(stage, folder / "data", len(data[stage]), run.size))
                measure(run, place, str(place / "model"), held_out, seed)


# ---- Data ------------------------------------------------------------------------------------------------------------


def split_rows(run: Run) -> tuple[list[Puzzle], list[Row], dict[str, list[Row]]]:
    """(puzzles to learn from, problems of the target to learn from, the held-out problems of each domain); the same for
    every seed."""
    size = run.size
    # Of the target all are drawn first, then shared out: a small task runs out of its shortest problems, so those that
    # are drawn after the others would be harder.
    problems = task_rows(run.target, size.held_out + 2 * size.examples, 0, run.chat)
    random.Random(0).shuffle(problems)
    to_learn, for_test = puzzles(size.people, size.pool, size.chain_words, size.held_out)
    rows = {run.target: problems[: size.held_out]}
    rows |= {name: task_rows(name, size.held_out, 0, run.chat) for name in run.domains()[1:] if name != KNIGHTS}
    rows[KNIGHTS] = puzzle_rows(for_test, size.held_out, "long", 0.0, size.chain_words, 0, run.chat)
    return to_learn, problems[size.held_out :], rows


def learn_from(
    run: Run, to_learn: list[Puzzle], problems: list[Row], own: list[Row], seed: int
) -> dict[str, list[Row]]:
    """The data of a seed, by the stage that learns from them. The control has the same puzzles, answers and sentences
    as the warm-up."""
    size = run.size
    chains = {}
    for name, style in (("warmup", "long"), ("control", run.control)):
        slips = 0.0 if style == "short" else size.slips  # there is no check in it
        chains[name] = puzzle_rows(to_learn, size.chains, style, slips, size.chain_words, 1000 * seed, run.chat)
    reinforced = random.Random(seed).sample(problems, size.examples)
    return {"form": own, **{name: rows + own for name, rows in chains.items()}, "rlvr": reinforced}


def own_answers(run: Run) -> list[Row]:
    """What the model itself answers to questions of tasks that are not measured, put into the asked form. It teaches
    the form and keeps the model's own way to think about what is no puzzle."""
    path, size = run.out / "data" / "own.jsonl", run.size
    if not path.exists():
        rows = [row for name in OWN if name != run.target for row in task_rows(name, size.own, 0, run.chat)]
        asked = [row | {"prompt": plain(row["question"], run.chat)} for row in rows]
        loaded = load_model(run.model, device=run.device)
        said = evaluate_rows(loaded, asked, usable, size.max_new_tokens, 1, traces=len(rows))["traces"]
        kept = [own_row(row, trace["completion"]) for row, trace in zip(rows, said, strict=True) if trace["reward"]]
        if not kept:
            raise TrainError(
                f"{run.model} finishes none of {len(rows)} answers within {size.max_new_tokens} tokens with a number"
            )
        print(
            f"own answers: {len(kept)} of {len(rows)} are finished and have a number, {size.own} are wanted", flush=True
        )
        write_rows(path.parent, {path.stem: random.Random(0).sample(kept, min(size.own, len(kept)))})
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(folder: Path, data: dict[str, list[Row]]) -> None:
    """One JSONL file for each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in data.items():
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row, default=str) + "\n" for row in rows))


# ---- Training and measuring ------------------------------------------------------------------------------------------


def settings_of(stage: str, data: Path, rows: int, size: Size) -> dict:
    """The table of `warpup train` for a stage that learns from so many rows."""
    if stage != "rlvr":
        steps = max(1, rows // size.batch)
        return {
            "warmup": {
                "data": str(data / f"{stage}.jsonl"), "steps": steps, "batch_size": size.batch, "lr": size.warm_lr,
                "lr_warmup": steps // 10, "save_every": 20, "max_tokens": size.max_tokens,
            }
        }  # fmt: skip
    return {
        "rlvr": {
            "data": str(data / "rlvr.jsonl"), "reward": f"{score.__module__}:score", "steps": size.rl_steps,
            "prompts": size.prompts, "samples": size.group, "max_new_tokens": size.max_new_tokens, "stop": [STOP],
            "temperature": size.rl_temperature, "top_p": size.rl_top_p, "lr": size.rl_lr,
            "lr_warmup": size.rl_steps // 10, "save_every": 5, "max_tokens": size.max_tokens,
            "patience": size.rl_steps + 1,  # an arm that learns nothing is a result
        }
    }  # fmt: skip


def train(config: dict) -> None:
    """`warpup train` by a config beside the arm's folder; a run that was stopped goes on, a finished one is left."""
    out = Path(config["out"])
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    print(f"+ warpup train {shlex.quote(str(file))}", flush=True)
    try:
        warpup_train([str(file)])
    except Interrupted:
        raise
    except TrainError as error:
        # Also where no step taught anything: then the model is what it was, and is measured all the same.
        if not (out / "model").is_dir():
            raise
        print(f"{out.name}: {error}", flush=True)


def measure(run: Run, folder: Path, model: str, held_out: dict[str, list[Row]], seed: int) -> None:
    """Write the accuracy of a model on each domain that it is not measured on yet to `folder/eval`."""
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    loaded, size = load_model(model, device=run.device), run.size
    for name in unmeasured(folder, held_out):
        samples = size.samples if name == run.target else size.samples_elsewhere
        tokens = size.puzzle_tokens if name == KNIGHTS else size.max_new_tokens
        began = time.perf_counter()
        found = evaluate_rows(loaded, held_out[name], score, tokens, samples, greedy=True, seed=seed, traces=12)
        found["seconds"] = time.perf_counter() - began
        write_text(folder / "eval" / f"{name}.json", json.dumps(found, indent=1) + "\n")
        known = {word: found[number] for number, word in SHOWN.items() if not math.isnan(found[number])}
        shares = ", ".join(f"{100 * share:.1f} % {word}" for word, share in known.items())
        print(f"{folder.name} on {name}: {shares} ({found['seconds']:.0f} s)", flush=True)


def unmeasured(folder: Path, held_out: dict[str, list[Row]]) -> list[str]:
    """The domains that an arm has not been measured on yet."""
    return [name for name in held_out if not (folder / "eval" / f"{name}.json").exists()]


def evaluate_rows(loaded, rows: list[Row], reward, tokens: int, samples: int, greedy: bool = False, **options) -> dict:
    """What `evaluate` finds at the paper's T = .7, top-p .95."""
    options |= {"temperature": 0.7, "top_p": 0.95, "max_new_tokens": tokens, "stop": [STOP], "reflection_words": WORDS}
    model, tokenizer = loaded
    return asdict(evaluate(model, tokenizer, rows, reward, samples=samples, greedy=greedy, **options))


def choose(run: Run, count: int) -> None:
    """Greedy accuracy of the model on each candidate for the target."""
    loaded = load_model(run.model, device=run.device)
    print(f"{'task':16} greedy %  in the form %  tokens  cut off %")
    for name in TASKS:
        rows = task_rows(name, count, 0, run.chat)
        found = evaluate_rows(loaded, rows, score, run.size.max_new_tokens, 0, greedy=True)
        right, form, cut = (100 * found[number] for number in ("greedy", "format_ok", "unfinished"))
        print(f"{name:16} {right:8.1f} {form:14.1f} {found['length']:7.1f} {cut:10.1f}", flush=True)
