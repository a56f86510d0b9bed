"""The settings of a run, and what of them cannot be: how a file is read is in config_file.py."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from .checks import check_budget, check_held_out, check_stop, check_unused, named
from .errors import TrainError
from .examples import Budget, RewardName, TemplateArguments, check_columns
from .files import FETCH, is_model
from .rewards.reward_set import VERIFIER, RewardSet
from .settings import LoRA, Precision, Weights
from .stages.rlvr_settings import RLVRSettings
from .stages.warmup_settings import WarmupSettings
from .trackers import Kind


@dataclass
class HeldOutConfig:
    """Held-out examples, measured while training and by `warpup eval`."""

    data: str = ""
    """A path or `hub:name`; empty: nothing is held out."""
    reward: RewardName = VERIFIER
    """`module:function` or `file.py:function`; a list of several, whose sum counts, and as accuracy the first that
    tells."""
    reward_timeout: float | None = None
    """Seconds that a call of a reward may take before it is stopped and counts as failed, as in a stage."""
    reward_workers: int = 0
    """Processes that call the rewards; 0: they are called one after another in the training process."""
    points: int = 10
    """How often to measure in each stage."""
    samples: int = 0
    """Sampled completions of each example beside the greedy one."""
    max_new_tokens: int = 256
    """Completions are cut off at this many tokens."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, as in RLVR."""
    thinking_budget: Budget = None
    """Tokens that thinking may take, or a table, as in RLVR."""
    keep_best: bool = False
    """Keep the weights of the best measurement of a stage, in the folder `best` beside its checkpoints."""
    stop_after: int | None = None
    """End a stage after so many measurements in a row without a better one."""
    limit: int | None = None
    """Use the first so many examples only."""
    prompt: str = "prompt"
    """Column of the prompts."""
    chat_template_kwargs: TemplateArguments = None
    """Arguments of the tokenizer's chat template; an example's own win."""
    answer: str | None = "answer"
    """Column of the answers; "none" if there is none."""

    def check(self) -> None:
        """Raise TrainError on settings that cannot be."""
        check_held_out(self)
        check_columns(self, "prompt", "answer", place="held_out")
        check_stop(self.stop, "held_out.stop")
        if self.thinking_budget is not None:
            check_budget(self.thinking_budget, "held_out.thinking_budget")
        with named("held_out"):
            self.reward_set()

    def reward_set(self) -> RewardSet:
        """The rewards; TrainError on what cannot be."""
        return RewardSet(self.reward, timeout=self.reward_timeout, workers=self.reward_workers)


@dataclass
class TrainConfig:
    """A run: a model folder, stages with data, an output folder. A stage without data is left out.

    Most runs are a warm-up and RLVR, which have a table each. In a file, `[[stages]]` takes their place: any stages, in
    any order and number, each with its `kind`.
    """

    model: str = ""
    """Folder of the model and tokenizer, as `transformers` saves them."""
    out: str = ""
    """Folder of the run; an existing run in it is resumed."""
    seed: int = 0
    """Seed of data order, sampling and everything else."""
    threads: int | None = None
    """CPU threads; exact resuming needs the same number each time."""
    device: str = "auto"
    """Where the model is: cpu, cuda, cuda:1; auto is cuda if there is one."""
    dtype: Precision = "auto"
    """What products are made in. Weights stay float32 (frozen ones, under adapters, are held in it). auto: bfloat16 for
    models from 20 million parameters on a GPU, or on a CPU with AMX or AVX512-BF16; else float32."""
    weights: Weights = "float32"
    """What weights are trained in. bfloat16: stochastically rounded, with moments in bfloat16 and gradients summed in
    float32: 10 bytes a weight in place of 16, and products in bfloat16."""
    attention: str | None = None
    """transformers' attn_implementation, such as sdpa or eager; none takes the model's own."""
    gradient_checkpointing: bool = False
    """Keep each layer's input alone for the backward pass: less memory, one forward pass more."""
    fsdp: bool = False
    """Of several processes each keeps a part of the weights, gradients and moments (FSDP2), and not all of them."""
    keep_last: int = 1
    """Newest checkpoints of each stage to keep."""
    track: Kind | None = None
    """A tracker that gets every step's numbers beside metrics.jsonl."""
    lora: LoRA = field(default_factory=LoRA)
    """Low-rank adapters in place of training all weights."""
    warmup: WarmupSettings = field(default_factory=WarmupSettings)
    """Stage one."""
    rlvr: RLVRSettings = field(default_factory=RLVRSettings)
    """Stage two."""
    stages: tyro.conf.Suppress[tuple[Any, ...]] = ()
    """Stages in place of these two; in a file only."""
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    """What to measure on."""

    def all_stages(self) -> list[Any]:
        """The stages that are run, in their order. It imports torch."""
        return [stage_of(settings) for settings in self.parts().values()]

    def parts(self) -> dict[str, Any]:
        """The settings of the stages that are run, in their order, each by its place in the config."""
        if self.stages:
            return {f"stages[{number}]": settings for number, settings in enumerate(self.stages)}
        return {name: getattr(self, name) for name in ("warmup", "rlvr") if getattr(self, name).data}


def stage_of(settings: Any) -> Any:
    """The stage that has these settings: that of `RLVRSettings` is `RLVR`."""
    import warpup.train

    return getattr(warpup.train, type(settings).__name__.removesuffix("Settings"))(**vars(settings))


def check_config_of_run(config: TrainConfig, file: TrainConfig) -> None:
    """`check_settings`, then `check_stages`."""
    check_settings(config, file)
    check_stages(config)


def check_settings(config: TrainConfig, file: TrainConfig) -> None:
    """Raise TrainError on settings that no run can have, or parts of which nothing would read; without torch, but for
    what only a stage itself can tell (`check_stages`).

    file: the config before flags changed it. A part whose data is given in the file and emptied by a flag is switched
    off on purpose; settings of a part that never had data are a mistake.
    """
    for key in ("model", "out"):
        if not getattr(config, key):
            raise TrainError(f"{key}: nothing given; set it in the config file or with --{key}")
    if config.threads is not None and config.threads < 1:
        raise TrainError(f"threads: expected at least 1, got {config.threads}")
    config.lora.check()
    if config.weights == "bfloat16":
        if config.dtype != "auto":
            raise TrainError(
                f"dtype: got {config.dtype!r}, but products are made in bfloat16, as weights is; leave it out"
            )
        if config.lora.r:
            raise TrainError(
                "weights: got 'bfloat16', but only adapters are trained, which stay float32; leave it out (the frozen "
                "weights are held in bfloat16 where dtype is)"
            )
    if config.fsdp and config.weights == "bfloat16":
        raise TrainError("fsdp: gradients of weights in bfloat16 would be summed in it; leave fsdp or weights out")
    if config.stages and (config.warmup.data or config.rlvr.data):
        raise TrainError(
            "stages: the tables [warmup] and [rlvr] have data too; write them as [[stages]] or leave these"
        )
    if not (config.stages or config.warmup.data or config.rlvr.data):
        raise TrainError("no stage has data: set warmup.data, rlvr.data or both")
    for name in ("warmup", "rlvr", "held_out"):
        part = getattr(config, name)
        if not part.data and not getattr(file, name).data:
            names = [field.name for field in dataclasses.fields(part) if field.name != "data"]
            check_unused(part, *names, place=name, why=f"{name} has no data and is left out; set {name}.data")
    if config.held_out.data:
        config.held_out.check()
    for place, part in config.parts().items():
        if not part.data:
            raise TrainError(f"{place}.data: nothing given")
        part.check()


def check_stages(config: TrainConfig) -> None:
    """Raise TrainError on settings that a stage cannot have. It imports torch."""
    for stage in config.all_stages():
        stage.check()


def check_paths(config: TrainConfig) -> None:
    """Raise TrainError where the model or data are paths of nothing; what is in them is looked at later."""
    from warpup.data.sources import check_path

    if not is_model(Path(config.model)):
        raise TrainError(f"model: {Path(config.model).resolve()} is not a saved model: it has no config.json ({FETCH})")
    if any(Path(config.out).glob("*.safetensors")):
        raise TrainError(f"out: {config.out} holds a model; give a folder that is not there yet, or holds the run")
    for name, part in {**config.parts(), "held_out": config.held_out}.items():
        data = part.data
        if data and isinstance(data, str):
            try:
                check_path(data)
            except FileNotFoundError as error:
                raise TrainError(f"{name}.data: {str(error).removeprefix('source: ')}") from error
