"""`warpup train` and `warpup eval`; the other commands on language models have files of their names.

Modules that need torch are imported where they are used, so that help and wrong calls do not wait for it.
"""

import json
import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from warpup._command_line import at_least, parse

from .checks import check_budget
from .errors import TrainError, UsageError
from .examples import RewardName, RunBudget
from .files import check_folder, read_table

if TYPE_CHECKING:  # imported where it is used
    from .config import HeldOutConfig


def train(arguments: list[str]) -> None:
    """warpup train [CONFIG] [--key value ...]: flags override the file."""
    from .config import TrainConfig, check_paths, check_settings, check_stages
    from .config_file import load_config

    if not arguments:
        raise UsageError(
            "give a config, as in `warpup train train.toml`; `warpup init FOLDER` writes one to begin with"
        )
    if arguments[0] == "--config":
        raise UsageError("--config: the config stands alone, as in `warpup train train.toml`")
    file = TrainConfig()
    if not arguments[0].startswith("-"):
        file, arguments = load_config(arguments[0]), arguments[1:]
    config = parse(TrainConfig, arguments, "warpup train [CONFIG]", file)
    check_settings(config, file)
    check_paths(config)
    check_stages(config)  # from here on torch is imported

    from .ranks import data_parallel

    with data_parallel():
        train_on_this_rank(config)


def train_on_this_rank(config) -> None:
    """What a checked `TrainConfig` says, as one of the processes that share it; the first of them tells."""
    import torch

    from . import ranks
    from .examples import examples_of
    from .files import write_text
    from .log import ProgressBar, quiet_transformers, together
    from .model.load_model import start_model
    from .model.precision import slow_products
    from .recipe import Recipe, what_was_learned
    from .report import write_report
    from .run import HeldOut
    from .trackers import tracking

    if config.threads:
        torch.set_num_threads(config.threads)
    settings = json.loads(json.dumps(asdict(config)))
    tracker = tracking(config.track, config.out, settings)
    held, held_out = config.held_out, None
    if held.data:
        held_out = HeldOut(
            examples_of(held), held.reward_set(), held.points, held.samples, held.max_new_tokens,
            keep_best=held.keep_best, stop_after=held.stop_after, stop=held.stop, thinking_budget=held.thinking_budget,
        )  # fmt: skip
    quiet_transformers()
    model, tokenizer = start_model(config)
    if told := slow_products(config.dtype, model):
        print(told, file=sys.stderr)
    recipe = Recipe(
        config.all_stages(),
        dtype=config.dtype,
        gradient_checkpointing=config.gradient_checkpointing,
        keep_last=config.keep_last,
        merge=config.lora.merge,
        fsdp=config.fsdp,
    )
    if ranks.rank():
        recipe.run(model, tokenizer, config.out, seed=config.seed, held_out=held_out)
        return
    own = Path(config.out) / "train.json"

    def keep(*step) -> None:
        """Once a step is done the folder is this run's: `warpup eval` and `warpup report` find the config in it."""
        if not own.exists():
            write_text(own, json.dumps(settings, indent=2) + "\n")

    with ProgressBar() as bar, tracker as track:
        report = together(keep, bar, track)
        recipe.run(model, tokenizer, config.out, seed=config.seed, report=report, held_out=held_out)
    write_text(own, json.dumps(settings, indent=2) + "\n")
    page = write_report(config.out)
    learned = ", ".join(what_was_learned(Path(config.out) / name) for name in recipe.names())
    print(f"trained {learned}: {Path(config.out) / 'model'}   numbers and curves: {page}")


@dataclass
class EvalArguments:
    """Accuracy of a trained model: mean over sampled completions, and greedy."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run or of a model."""
    data: str = ""
    """Examples with prompt and answer; default: the run's own held-out data."""
    reward: RewardName = ""
    """`module:function` or `file.py:function`; default: the run's own, else the puzzle verifier."""
    trust: bool = False
    """Import the reward that the run's folder names, which is code of whoever made the folder; not asked of warpup's
    own rewards."""
    samples: int | None = None
    """Sampled completions of each example beside the greedy one; default: as many as the run takes, or 4."""
    temperature: float | None = None
    """Their temperature; default: 0.7."""
    top_p: float | None = None
    """Their nucleus; default: 1, all tokens."""
    max_new_tokens: int | None = None
    """Completions are cut off at this many tokens; default: the run's own, else 256."""
    thinking_budget: RunBudget = ""
    """Tokens that thinking may take before its end is written for the model, or a table as in RLVR; none: any number;
    default: the run's own."""
    limit: int | None = None
    """Use the first so many examples only; default: of the run's data as many as it used, else all."""
    schedule: tuple[str, ...] = ()
    """Compare these decodings, such as `plain tip:alpha=3,beta=60 s1:times=1 cyclic:amplitude=3,period=60`, or
    `compare`: these and a small grid of amplitude and period, made to the length of the plain traces."""
    words: str = ""
    """Reflection words that are counted, and that schedules act on, separated by commas; default: the puzzles' own, or
    those of English traces."""
    seeds: int | None = None
    """With --schedule: sample with so many seeds, for the spread; default: 3."""
    seed: int | None = None
    """Seed of the sampling, or the first of them; default: 0."""
    device: str = "auto"
    """Where the model is: cpu, cuda, cuda:1; auto is cuda if there is one."""
    dtype: str = ""
    """What products are made in: float32, bfloat16; auto as in `warpup train`; default: the run's own, else auto. The
    weights of a model saved in 16 bits are read as float32."""
    json: bool = False
    """Print JSON in place of a table."""


def check_trusted(file: Path, reward: RewardName, given: EvalArguments) -> None:
    """UsageError where a reward that a run's folder names would be imported, and so run, without the user's word."""
    names = [reward] if isinstance(reward, str) or callable(reward) else list(reward)
    foreign = [str(name) for name in names if not str(name).startswith(("warpup.rewards:", "warpup.data:"))]
    if foreign and not (given.reward or given.trust):
        raise UsageError(
            f"{file} names the reward {', '.join(foreign)}, code that would be run: give --trust if you trust the "
            "folder, or a reward of your own by --reward"
        )


def measured_as(given: EvalArguments) -> tuple["HeldOutConfig", str]:
    """What is measured and the precision: what is given, else as the run in this folder measured itself, which is
    said."""
    from .config import HeldOutConfig
    from .config_file import fill

    own, dtype, told = Path(given.run) / "train.json", given.dtype or "auto", {}
    held: HeldOutConfig = HeldOutConfig()
    changes: dict[str, Any] = {"samples": given.samples, "max_new_tokens": given.max_new_tokens, "limit": given.limit}
    changes |= {"data": given.data or None, "reward": given.reward or None}
    changes = {name: value for name, value in changes.items() if value is not None}
    if given.thinking_budget != "":
        changes["thinking_budget"] = given.thinking_budget
    if own.is_file():
        table = read_table(own, "held_out")
        held = fill(HeldOutConfig, table["held_out"], f"{own}: held_out.")
        check_trusted(own, held.reward, given)
        dtype = given.dtype or table.get("dtype", dtype)
        if given.data:
            held = replace(held, limit=None)
        names = ("data", "limit", "reward", "samples", "max_new_tokens", "stop", "thinking_budget")
        told = {name: getattr(held, name) for name in names if name not in changes and getattr(held, name)}
        told |= {} if given.dtype else {"dtype": dtype}
    held = replace(held, **{"samples": held.samples or 4, **changes})
    if not held.data:
        raise UsageError("nothing to measure on: give --data (the run has no held-out data of its own)")
    if told:
        said = ", ".join(f"{name} {value}" for name, value in told.items())
        print(f"as the run has it: {said}", file=sys.stderr)
    return held, dtype


def examples_to_measure(held: "HeldOutConfig", given: EvalArguments):
    """The examples; TrainError where there are none, by the option that names them."""
    from warpup.data.load import MissingColumn

    from .examples import examples_of

    try:
        return examples_of(held)
    except TrainError as error:
        if not given.data:
            raise
        cause, said = error.__cause__, str(error).removeprefix("held_out.data: ")
        said = f"{cause.lacking}; give that column this name" if isinstance(cause, MissingColumn) else said
        raise TrainError(f"--data: {said}") from error


def eval(arguments: list[str]) -> None:
    """warpup eval RUN."""
    given = parse(EvalArguments, arguments, "warpup eval")
    if given.trust and given.reward:
        raise UsageError("--trust: it is about the reward that the run names, which --reward replaces; leave it out")
    temperature = 0.7 if given.temperature is None else given.temperature
    top_p, seed = 1.0 if given.top_p is None else given.top_p, given.seed or 0
    seeds = 3 if given.seeds is None else given.seeds
    if temperature <= 0 or not 0 < top_p <= 1:
        raise UsageError("expected --temperature > 0, 0 < --top-p <= 1")
    for name, least in (("samples", 0), ("max_new_tokens", 1), ("limit", 1)):
        if getattr(given, name) is not None:
            at_least(given, **{name: least})
    if given.thinking_budget not in ("", None):
        check_budget(given.thinking_budget, "--thinking-budget")
    if given.schedule and (given.samples == 0 or seeds < 1):
        raise UsageError("--schedule compares samples: expected --samples and --seeds of at least 1")
    if given.samples == 0:
        for name in ("temperature", "top_p", "seed"):
            if getattr(given, name) is not None:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag}: it is that of the sampled completions, of which --samples 0 takes none")
    if given.seeds is not None and not given.schedule:
        raise UsageError("--seeds: only --schedule samples with several seeds; give --schedule, or --seed for one")
    check_folder(given.run)

    from .rewards.reward_set import VERIFIER

    held, dtype = measured_as(given)

    from warpup.data import REFLECTION_WORDS
    from warpup.reflection.tokens import WORDS

    from .evaluation import evaluate
    from .log import ProgressBar, quiet_transformers
    from .model.load_model import device_of, load_model, newest_model
    from .model.precision import autocast_dtype, computing
    from .sampling.decoding import split_words

    examples, rewards = examples_to_measure(held, given), held.reward_set()
    quiet_transformers()
    folder = newest_model(given.run)
    model, tokenizer = load_model(folder, device=device_of(given.device))
    products = autocast_dtype(dtype, model)
    words = split_words(given.words or ",".join(REFLECTION_WORDS if held.reward == VERIFIER else WORDS))
    options = {
        "samples": held.samples,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": held.max_new_tokens,
        "stop": held.stop,
        "thinking_budget": held.thinking_budget,
    }
    if given.schedule:
        from warpup.apps.compare import compare, show

        all_seeds = range(seed, seed + seeds)
        with ProgressBar() as bar, computing(model, products):
            rows = compare(
                model, tokenizer, examples, rewards, given.schedule, words, all_seeds, bar, **options
            )  # fmt: skip
        if given.json:
            print(json.dumps(rows))
        else:
            show(rows, Path(given.run))
        return
    with computing(model, products):
        found = evaluate(model, tokenizer, examples, rewards, seed=seed, reflection_words=words, **options)
    numbers = {name: value if math.isfinite(value) else None for name, value in found.numbers().items()}
    if given.json:
        print(json.dumps(numbers))
        return
    print(f"{folder} on {numbers['examples']} examples of {held.data}")
    for name, value in numbers.items():
        if value is not None:
            print(f"  {name:12} {value:.4g}")
    if numbers["greedy"] is None:
        print(
            "no accuracy: the reward gives a number alone, and does not say what is right (warpup.rewards.Grade does)"
        )
