"""The subcommands of `warpup` but for `info`: arguments, and the calls behind them."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import tyro

from warpup.data import REFLECTION_WORDS
from warpup.reflection.tokens import WORDS

from .arguments import parse
from .compare import compare, show
from .config import TrainConfig, check_positive, load_config
from .data import examples_of
from .decoding import split_words
from .errors import TrainError, UsageError
from .evaluate import evaluate
from .log import ProgressBar
from .recipe import Recipe, load_model, newest_model
from .rewards import VERIFIER
from .run import HeldOut

RUN = tyro.conf.Positional


def train(arguments: list[str]) -> None:
    """warpup train [CONFIG] [--key value ...]: flags override the file."""
    config = TrainConfig()
    if arguments and not arguments[0].startswith("-"):
        config, arguments = load_config(arguments[0]), arguments[1:]
    config = parse(TrainConfig, arguments, "warpup train [CONFIG]", config)
    for key in ("model", "out"):
        if not getattr(config, key):
            raise TrainError(f"{key}: nothing given; set it in the config file or with --{key}")
    stages = [stage for stage in (config.warmup, config.rlvr) if stage.data]
    if not stages:
        raise TrainError("no stage has data: set warmup.data, rlvr.data or both")
    check_settings(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    held = config.held_out
    held_out = (
        HeldOut(examples_of(held), held.reward, held.points, held.samples, held.max_new_tokens) if held.data else None
    )
    model, tokenizer = load_model(config.model)
    recipe = Recipe(stages)
    with ProgressBar() as bar:
        recipe.run(model, tokenizer, config.out, seed=config.seed, report=bar, held_out=held_out)
    (Path(config.out) / "train.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    print(f"trained model: {Path(config.out) / 'model'}   numbers: {Path(config.out) / 'metrics.jsonl'}")


def check_settings(config: TrainConfig) -> None:
    """Raise TrainError on a setting that no run can have."""
    if config.warmup.data:
        check_positive(config.warmup, "steps", "batch_size", "lr", "max_tokens", "save_every", place="warmup")
    if config.rlvr.data:
        names = ("steps", "prompts", "max_new_tokens", "temperature", "lr", "inner_epochs", "max_tokens", "save_every")
        check_positive(config.rlvr, *names, place="rlvr")
        if config.rlvr.samples < 2:
            raise TrainError(f"rlvr.samples: a group needs at least 2 completions, got {config.rlvr.samples}")
    if config.held_out.data:
        check_positive(config.held_out, "points", "max_new_tokens", place="held_out")


@dataclass
class SampleArguments:
    """Print completions of a trained model."""

    run: RUN[str]
    """Folder of a run or of a model."""
    prompt: str = ""
    """The prompt; without it, prompts are read from --data."""
    data: str = ""
    """Examples to take prompts from."""
    n: int = 4
    """Completions of a prompt, or with --data, prompts with one completion each."""
    temperature: float = 0.7
    """Sampling temperature; 0 takes the likeliest token."""
    max_new_tokens: int = 256
    """Completions are cut off at this many tokens."""
    seed: int = 0
    """Seed of the sampling."""


def sample(arguments: list[str]) -> None:
    """warpup sample RUN."""
    from .batch import encode_prompt
    from .evaluate import decode
    from .rollout import rollout

    given = parse(SampleArguments, arguments, "warpup sample")
    if given.n < 1 or given.max_new_tokens < 1 or given.temperature < 0:
        raise UsageError("--n and --max-new-tokens must be at least 1, --temperature at least 0")
    if bool(given.prompt) == bool(given.data):
        raise UsageError("give either --prompt or --data")
    model, tokenizer = load_model(newest_model(given.run))
    prompts, copies = [given.prompt], given.n
    if given.data:
        prompts, copies = [e["prompt"] for e in read_prompts(given.data, given.n)], 1
    rolls = rollout(
        model.eval(),
        [encode_prompt(tokenizer, prompt) for prompt in prompts],
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        copies=copies,
        max_new_tokens=given.max_new_tokens,
        temperature=given.temperature,
        generator=torch.Generator(model.device).manual_seed(given.seed),
    )
    for row, text in enumerate(decode(tokenizer, rolls)):
        cut = "" if rolls.finished[row] else " ... (cut off)"
        print(f"{prompts[row // copies]}\n  -> {text}{cut}\n")


def read_prompts(source: str, limit: int) -> list[dict]:
    """The first examples of a source that need only a prompt."""
    from warpup.data import load_examples

    try:
        return load_examples(source, completion=None, answer=None, limit=limit)
    except (OSError, ValueError, ImportError) as error:
        raise TrainError(f"--data: {error}") from error


@dataclass
class EvalArguments:
    """Accuracy of a trained model: mean over sampled completions, and greedy."""

    run: RUN[str]
    """Folder of a run or of a model."""
    data: str = ""
    """Examples with prompt and answer; default: the run's own held-out data."""
    reward: str = ""
    """`module:function` or `file.py:function`; default: the run's own, else the puzzle verifier."""
    samples: int = 4
    """Sampled completions of each example."""
    temperature: float = 0.7
    """Their temperature."""
    top_p: float = 1.0
    """Their nucleus."""
    max_new_tokens: int = 256
    """Completions are cut off at this many tokens."""
    limit: int | None = None
    """Use the first so many examples only."""
    schedule: tuple[str, ...] = ()
    """Compare these decodings, such as `plain tip:alpha=3,beta=60 s1:times=1 cyclic:amplitude=3,period=60`, or
    `compare`: these and a small grid of amplitude and period, made to the length of the plain traces."""
    words: str = ""
    """Reflection words of the schedules, separated by commas; default: the puzzles' own, or those of English traces."""
    seeds: int = 3
    """With --schedule: sample with so many seeds, for the spread."""
    seed: int = 0
    """Seed of the sampling, or the first of them."""
    json: bool = False
    """Print JSON in place of a table."""


def eval(arguments: list[str]) -> None:
    """warpup eval RUN."""
    from .config import HeldOutConfig

    given = parse(EvalArguments, arguments, "warpup eval")
    own = Path(given.run) / "train.json"
    held = HeldOutConfig(**json.loads(own.read_text())["held_out"]) if own.is_file() else HeldOutConfig()
    held = replace(
        held, data=given.data or held.data, reward=given.reward or held.reward or VERIFIER, limit=given.limit
    )
    if not held.data:
        raise UsageError("nothing to measure on: give --data (the run has no held-out data of its own)")
    if given.samples < 0 or given.temperature <= 0 or not 0 < given.top_p <= 1 or given.max_new_tokens < 1:
        raise UsageError("expected --samples >= 0, --temperature > 0, 0 < --top-p <= 1, --max-new-tokens >= 1")
    folder = newest_model(given.run)
    model, tokenizer = load_model(folder)
    options = {
        "samples": given.samples,
        "temperature": given.temperature,
        "top_p": given.top_p,
        "max_new_tokens": given.max_new_tokens,
    }
    if given.schedule:
        if given.samples < 1 or given.seeds < 1:
            raise UsageError("--schedule compares samples: expected --samples and --seeds of at least 1")
        words = given.words or ",".join(REFLECTION_WORDS if held.reward == VERIFIER else WORDS)
        seeds = range(given.seed, given.seed + given.seeds)
        with ProgressBar() as bar:
            rows = compare(
                model,
                tokenizer,
                examples_of(held),
                held.reward,
                given.schedule,
                split_words(words),
                seeds,
                bar,
                **options,
            )
        if given.json:
            print(json.dumps(rows))
        else:
            show(rows, Path(given.run))
        return
    numbers = evaluate(model, tokenizer, examples_of(held), held.reward, seed=given.seed, **options).numbers()
    if given.json:
        print(json.dumps(numbers))
        return
    print(f"{folder} on {numbers['examples']} examples of {held.data}")
    for name, value in numbers.items():
        print(f"  {name:12} {value:.4g}")


def demo(arguments: list[str]) -> None:
    """warpup demo."""
    from .demo import DemoArguments, run_demo

    run_demo(parse(DemoArguments, arguments, "warpup demo"))


def certify(arguments: list[str]) -> None:
    """warpup certify [DATA]."""
    from .certify_run import certify

    certify(arguments)


def continual(arguments: list[str]) -> None:
    """warpup continual."""
    from .continual import ContinualArguments, run_continual

    run_continual(parse(ContinualArguments, arguments, "warpup continual"))
