"""`warpup sample`: completions of a prompt, of prompts from a file, or a chat."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from warpup._command_line import parse

from .checks import check_budget
from .errors import TrainError, UsageError
from .examples import RunBudget
from .files import check_folder, read_table

if TYPE_CHECKING:  # imported where it is used
    from .config import HeldOutConfig


@dataclass
class SampleArguments:
    """Print completions of a trained model, or chat with it."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run or of a model."""
    prompt: str = ""
    """The prompt: what a user says, where the tokenizer has a chat template, else the text to go on from."""
    raw: bool = False
    """Take --prompt as the text to go on from, chat template or not."""
    data: str = ""
    """Examples to take prompts from, in place of --prompt."""
    chat: bool = False
    """Talk with the model, in place of --prompt."""
    n: int | None = None
    """Completions of a prompt, or with --data, prompts with one completion each; default: 4, at temperature 0 one."""
    temperature: float = 0.7
    """Sampling temperature; 0 takes the likeliest token."""
    max_new_tokens: int | None = None
    """Completions are cut off at this many tokens; default: the run's own, else 256."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion; default: the run's own."""
    thinking_budget: RunBudget = ""
    """Tokens that thinking may take before its end is written for the model, or a table as in RLVR; none: any number;
    default: the run's own."""
    seed: int | None = None
    """Seed of the sampling; default: 0."""

    def check(self) -> None:
        """UsageError on what no call can mean."""
        counts = [count for count in (self.n, self.max_new_tokens) if count is not None]
        if any(count < 1 for count in counts) or self.temperature < 0:
            raise UsageError("--n and --max-new-tokens must be at least 1, --temperature at least 0")
        if bool(self.prompt) + bool(self.data) + self.chat != 1:
            raise UsageError("give one of --prompt, --data and --chat")
        if self.raw and not self.prompt:
            raise UsageError("--raw: it is about --prompt, which is not given; leave it out")
        if self.n is not None and self.chat:
            raise UsageError("--n: a chat has one answer at a time; leave it out")
        if self.chat and self.stop:
            raise UsageError("--stop: the turns of a chat end by themselves; leave it out")
        if self.chat and self.thinking_budget != "":
            raise UsageError("--thinking-budget: a chat thinks as long as it likes; leave it out")
        if self.thinking_budget not in ("", None):
            check_budget(self.thinking_budget, "--thinking-budget")
        if "" in self.stop:
            raise UsageError("--stop: an empty text is in every completion; leave it out")
        greedy = self.temperature == 0
        if greedy and self.seed is not None:
            raise UsageError("--seed: nothing is drawn at temperature 0; leave one of the two out")
        if greedy and self.prompt and (self.n or 1) > 1:
            raise UsageError(f"--n: at temperature 0 all {self.n} completions of a prompt are the same; leave it out")


def sample(arguments: list[str]) -> None:
    """warpup sample RUN."""
    given = parse(SampleArguments, arguments, "warpup sample")
    given.check()
    check_folder(given.run)
    held = sampled_as(given)

    import torch

    from .chat import answering, chat
    from .log import quiet_transformers
    from .model.load_model import device_of, load_model, newest_model

    quiet_transformers()
    folder = newest_model(given.run)
    model, tokenizer = load_model(folder, device=device_of("auto"))
    model.eval()
    if given.chat:
        if not tokenizer.chat_template:
            raise TrainError(f"--chat: the tokenizer in {folder} has no chat template; use --prompt")
        torch.manual_seed(given.seed or 0)
        template = held.chat_template_kwargs
        chat(answering(model, tokenizer, given.temperature, held.max_new_tokens, template))
    else:
        complete(model, tokenizer, given, held)


def sampled_as(given: SampleArguments) -> "HeldOutConfig":
    """How completions are sampled: as is given, else as the run in this folder samples its own, which is said: in its
    last stage that does, else where it measures itself."""
    from .config import HeldOutConfig
    from .config_file import fill

    own, told = Path(given.run) / "train.json", {}
    held: HeldOutConfig = HeldOutConfig()
    changes: dict[str, Any] = {"max_new_tokens": given.max_new_tokens, "stop": given.stop}
    changes = {name: value for name, value in changes.items() if value}
    if given.thinking_budget != "":
        changes["thinking_budget"] = given.thinking_budget
    if own.is_file():
        table = read_table(own, "held_out")
        stages = table.get("stages") or [table.get("warmup", {}), table.get("rlvr", {})]
        sampling = [p for p in (table["held_out"], *stages) if p.get("data") and "max_new_tokens" in p]
        names = ["max_new_tokens", "chat_template_kwargs", *([] if given.chat else ["stop", "thinking_budget"])]
        its_own = {name: value for name, value in (sampling or [{}])[-1].items() if name in names}
        held = fill(HeldOutConfig, its_own, f"{own}: ")
        told = {name: getattr(held, name) for name in its_own if name not in changes and getattr(held, name)}
    if told:
        said = ", ".join(f"{name} {value}" for name, value in told.items())
        print(f"as the run has it: {said}", file=sys.stderr)
    return replace(held, **changes)


def complete(model, tokenizer, given: SampleArguments, held: "HeldOutConfig") -> None:
    """Print completions of the prompts that are asked for, sampled as `held` says."""
    import torch

    from .model.tokens import decode, encode_prompt, end_tokens
    from .report import spoken
    from .sampling.decoding import DecodingStrategy
    from .sampling.rollouts import rollout
    from .sampling.stopping import stop_strings

    examples: list[dict[str, Any]] = [{"prompt": given.prompt}]
    copies = given.n or (1 if given.temperature == 0 else 4)
    if given.data:
        examples, copies = read_prompts(given.data, given.n or 4), 1
    elif given.raw or not tokenizer.chat_template:
        print("prompt: a text to go on from" + ("" if given.raw else "; the tokenizer has no chat template"))
    else:
        print("prompt: a user's turn in the model's chat template; --raw takes it as a text to go on from")
        examples = [{"prompt": [{"role": "user", "content": given.prompt}]}]
    template = held.chat_template_kwargs or {}
    examples = [e | {"chat_template_kwargs": template | (e.get("chat_template_kwargs") or {})} for e in examples]
    rolls = rollout(
        model,
        [encode_prompt(tokenizer, example["prompt"], example) for example in examples],
        eos=end_tokens(model, tokenizer),
        pad=tokenizer.pad_token_id,
        copies=copies,
        max_new_tokens=held.max_new_tokens,
        temperature=given.temperature,
        stop=stop_strings(tokenizer, held.stop),
        decoding=DecodingStrategy().under(held.thinking_budget, tokenizer, held.max_new_tokens, "--thinking-budget"),
        generator=torch.Generator(model.device).manual_seed(given.seed or 0),
    )
    for row, text in enumerate(decode(tokenizer, rolls)):
        cut = "" if rolls.finished[row] else " ... (cut off)"
        asked = given.prompt or spoken(examples[row // copies]["prompt"])
        print(f"{asked}\n  -> {text}{cut}\n")


def read_prompts(source: str, limit: int) -> list[dict]:
    """The first examples of a source that need only a prompt."""
    from warpup.data import load_examples

    try:
        return load_examples(source, completion=None, answer=None, limit=limit)
    except (OSError, ValueError, ImportError) as error:
        raise TrainError(f"--data: {str(error).removeprefix('source: ')}") from error
