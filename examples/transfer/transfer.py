"""Warm up on Knights & Knaves, reinforce on at most 100 examples of another domain: what carries over?

    pip install gguf reasoning-gym peft
    python ../models/install.py smollm2 smollm2
    python transfer.py --model smollm2

Seven arms are trained by `warpup train` and measured on held-out problems of three domains; `report.html`, `table.md`
and `transfer.png` in the folder `--out` show them. The same command goes on where it was stopped; docs/transfer.md
explains the settings.
"""

import argparse
import json
import math
import random
import shlex
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import yaml
from domains import KNIGHTS, TASKS, Row, own_row, plain, puzzle_rows, puzzles, score, task_rows, usable
from report import show
from settings import ARMS, SIZES, Size, slug
from transformers import AutoTokenizer

from warpup import cli
from warpup.data import Puzzle
from warpup.train import evaluate, load_model

HERE = Path(__file__).resolve().parent
TARGET, OTHERS, OWN = "short_sum", ("siblings", KNIGHTS), ("leg_counting", "gsm_symbolic")
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


def main(arguments: list[str] | None = None) -> None:
    given, began = options(arguments), time.perf_counter()
    device = given.device if given.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    chat = bool(AutoTokenizer.from_pretrained(given.model).chat_template)
    run = Run(given.model, Path(given.out), given.size, given.target, given.control, device, chat)
    if given.choose:
        choose(run, given.choose)
        return
    remember(run)

    # What all seeds share: held-out problems, the base's accuracy, and its own answers in the asked form.
    to_learn, held_out = held_out_rows(run)
    write_rows(run.out / "data", held_out)
    if unmeasured(run.out / "base", held_out):
        measure(run, run.out / "base", run.model, held_out, 0)
    own = own_answers(run)

    for seed in range(given.seeds):
        folder = run.out / f"seed-{seed}"
        data = learn_from(run, to_learn, own, seed)
        write_rows(folder / "data", data)
        for arm, (before, stage) in ARMS.items():
            place = folder / slug(arm)
            if stage and unmeasured(place, held_out):
                start = run.model if before == "base" else str(folder / slug(before) / "model")
                config = {"model": start, "out": str(place), "seed": seed, "device": device}
                if before == "base" and run.size.rank:  # the others go on with these adapters
                    config["lora"] = {"r": run.size.rank, "alpha": 2.0 * run.size.rank}
                train(config | settings_of(stage, folder / "data", len(data[stage]), run.size))
                measure(run, place, str(place / "model"), held_out, seed)
    show(run.out, run.domains(), run.size, run.control, given.seeds)
    print(f"{run.out / 'report.html'}   ({time.perf_counter() - began:.0f} s)")


def options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder of a pretrained model, as transformers saves it")
    add("--out", default="runs/transfer", help="folder of the results; what is done there is reused")
    add("--size", choices=SIZES, default="cpu", help="quick: minutes; cpu: an hour and a half; gpu: the paper's sizes")
    add("--quick", dest="size", action="store_const", const="quick", help="the same as --size quick")
    add("--set", nargs="+", default=[], metavar="NAME=NUMBER",
        help="numbers of settings.py in place of the size's own, such as rl_steps=40 rl_lr=2e-4")  # fmt: skip
    add("--seeds", type=int, default=1, help="repeat the training with so many seeds")
    add("--target", choices=TASKS, default=TARGET, help="domain that RLVR learns from")
    add("--control", choices=("shuffled", "short"), default="shuffled",
        help="what the control imitates: the chains' sentences in random order, or answers alone")  # fmt: skip
    add("--device", default="auto", help="cpu, cuda; auto: a GPU if there is one")
    add("--choose", type=int, default=0, metavar="N",
        help="measure the base on N problems of each candidate for the target, and end")  # fmt: skip
    given = parser.parse_args(arguments)
    if given.seeds < 1 or given.choose < 0:
        parser.error("expected --seeds of at least 1 and --choose of at least 0")
    if not (Path(given.model) / "config.json").is_file():
        parser.error(
            f"--model: {given.model} is not a saved model, it has no config.json; examples/models/install.py makes one"
        )
    given.size = SIZES[given.size]
    for name, _, value in (text.partition("=") for text in given.set):
        kind = type(getattr(given.size, name, None))
        try:
            number = {int: int, float: float}[kind](value)
            if not number >= 0:
                raise ValueError
            given.size = replace(given.size, **{name: number})
        except (KeyError, ValueError):
            numbers = [key for key, known in asdict(given.size).items() if isinstance(known, int | float)]
            parser.error(f"--set: expected numbers of at least 0 by name, of {', '.join(numbers)}; got {name}={value}")
    return given


def remember(run: Run) -> None:
    """Write what the run is, or end where the folder holds another one."""
    path = run.out / "transfer.json"
    wanted = {"model": run.model, "target": run.target, "control": run.control, **asdict(run.size)}
    wanted = json.loads(json.dumps(wanted))
    there = json.loads(path.read_text()) if path.exists() else wanted
    if other := [
        f"{key}: {there.get(key)} there, {wanted[key]} now" for key in wanted if there.get(key) != wanted[key]
    ]:
        sys.exit(f"{run.out} holds another run ({'; '.join(other)}): choose another --out")
    run.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=2) + "\n")


# ---- Data ------------------------------------------------------------------------------------------------------------


def held_out_rows(run: Run) -> tuple[list[Puzzle], dict[str, list[Row]]]:
    """(puzzles to learn from, the held-out problems of each domain); the same for every seed."""
    size = run.size
    to_learn, for_test = puzzles(size.people, size.pool, size.chain_words, size.held_out)
    rows = {name: task_rows(name, size.held_out, 0, run.chat) for name in run.domains() if name != KNIGHTS}
    return to_learn, rows | {KNIGHTS: puzzle_rows(for_test, size.held_out, "long", 0.0, size.chain_words, 0, run.chat)}


def learn_from(run: Run, to_learn: list[Puzzle], own: list[Row], seed: int) -> dict[str, list[Row]]:
    """The data of a seed, by the stage that learns from them. The control has the same puzzles, answers and sentences
    as the warm-up."""
    size = run.size
    chains = {}
    for name, style in (("warmup", "long"), ("control", run.control)):
        slips = 0.0 if style == "short" else size.slips  # there is no check in it
        chains[name] = puzzle_rows(to_learn, size.chains, style, slips, size.chain_words, 1000 * seed, run.chat)
    behind = 4 * size.held_out + 4 * size.examples * seed  # items of the task that were not held out
    reinforced = task_rows(run.target, size.examples, behind, run.chat)
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
            sys.exit(
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
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))


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
            "data": str(data / "rlvr.jsonl"), "reward": f"{HERE / 'domains.py'}:score", "steps": size.rl_steps,
            "prompts": size.prompts, "samples": size.group, "max_new_tokens": size.max_new_tokens, "stop": [STOP],
            "temperature": 0.7, "top_p": 0.95, "lr": size.rl_lr, "lr_warmup": size.rl_steps // 10, "save_every": 5,
            "max_tokens": size.max_tokens,
            "patience": size.rl_steps + 1,  # an arm that learns nothing is a result
        }
    }  # fmt: skip


def train(config: dict) -> None:
    """`warpup train` by a config beside the arm's folder; a run that was stopped goes on, a finished one is left."""
    out = Path(config["out"])
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    print(f"+ warpup train {shlex.quote(str(file))}", flush=True)
    # It also fails where no step taught anything: then the model is what it was, and is measured all the same.
    if (code := cli.main(["train", str(file)])) and not (out / "model").is_dir():
        sys.exit(code)


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
        (folder / "eval" / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        known = {word: found[number] for number, word in SHOWN.items() if not math.isnan(found[number])}
        shares = ", ".join(f"{100 * share:.1f} % {word}" for word, share in known.items())
        print(f"{folder.name} on {name}: {shares} ({found['seconds']:.0f} s)", flush=True)


def unmeasured(folder: Path, held_out: dict[str, list[Row]]) -> list[str]:
    """The domains that an arm has not been measured on yet."""
    return [name for name in held_out if not (folder / "eval" / f"{name}.json").exists()]


def evaluate_rows(loaded, rows: list[Row], reward, tokens: int, samples: int, greedy: bool = False, **options) -> dict:
    """What `evaluate` finds at the paper's T = .7, top-p .95."""
    options |= {"temperature": 0.7, "top_p": 0.95, "max_new_tokens": tokens, "stop": [STOP], "reflection_words": WORDS}
    return asdict(evaluate(*loaded, rows, reward, samples=samples, greedy=greedy, **options))


def choose(run: Run, count: int) -> None:
    """Greedy accuracy of the model on each candidate for the target."""
    loaded = load_model(run.model, device=run.device)
    print(f"{'task':16} greedy %  in the form %  tokens  cut off %")
    for name in TASKS:
        rows = task_rows(name, count, 0, run.chat)
        found = evaluate_rows(loaded, rows, score, run.size.max_new_tokens, 0, greedy=True)
        right, form, cut = (100 * found[number] for number in ("greedy", "format_ok", "unfinished"))
        print(f"{name:16} {right:8.1f} {form:14.1f} {found['length']:7.1f} {cut:10.1f}", flush=True)


if __name__ == "__main__":
    main()
