"""A recipe: stages that train one model in turn, in one folder that any later call resumes or reuses.

OUT/config.json            what the run starts from; a folder that holds another run is refused
OUT/metrics.jsonl          one line a step
OUT/1-warmup/stage.json    settings of each stage
OUT/1-warmup/step-...      its newest checkpoint (see checkpoint.py)
OUT/model                  the trained model, as `transformers` saves it; of adapters, as `peft` does; checksums.json
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from . import checkpoint, ranks
from .engines.settings import SERVERS
from .errors import Interrupted, TrainError
from .examples import examples_of
from .files import locked, read_table, write_text
from .log import MetricsLog, Report, quiet
from .model.fsdp import is_sharded, shard_model, whole
from .model.lora import is_adapted, merged
from .model.memory import rows_that_fit, tokens_that_fit
from .model.precision import autocast_dtype, checkpoint_layers
from .model.tokens import check_tokenizer
from .run import HeldOut, StageRun
from .run_config import check_config, check_stage, describe_model, describe_stage, seed_everything
from .settings import Precision

LEFT_OUT = ("skipped", "nonfinite")  # events that leave a step out

FITTED = ("max_tokens", "rows")  # settings of a stage that are measured where they are left open


class Stage(Protocol):
    """What a recipe is made of: a dataclass whose fields are its settings, `data` and `steps` among them.

    FREE, if it has one, names settings that do not change what is computed, so that they may change on resuming. Of the
    settings `max_tokens` and `rows`, if it has them, None becomes what fits into memory; `rows` needs a method
    `longest_row(prepared)`, the tokens of a prompt and its completion. Its folder is its place and its class's name in
    lower case: 1-warmup, 2-rlvr.
    """

    data: Any
    steps: int

    def check(self) -> None:
        """Raise TrainError on settings that no run can have; called for all stages before the first one starts."""

    def prepare(self, model, tokenizer, examples: Sequence[dict]) -> Any:
        """What `train` needs of the examples, such as their tokens. Raise TrainError on what does not fit model and
        data; called like `check`, so before any training."""

    def train(self, run: StageRun, prepared: Any, /) -> None:
        """Train `run.model` on what `prepare` returned: a loop over `run.steps(...)`."""


@dataclass
class Recipe:
    """Stages, and how the model computes in them; see `Warmup` and `RLVR`."""

    stages: Sequence[Stage]
    dtype: Precision = "float32"
    """What products are made in: float32, bfloat16 (weights stay float32), or auto, whatever suits model and device."""
    gradient_checkpointing: bool = False
    """Keep each layer's input alone for the backward pass: less memory, one forward pass more."""
    keep_last: int = 1
    """Newest checkpoints of each stage to keep."""
    merge: bool = False
    """Write the finished model with its adapters merged into the weights."""
    fsdp: bool = False
    """Spread weights, gradients and moments over the processes, in place of a copy in each."""

    def run(
        self,
        model,
        tokenizer,
        out: str | Path,
        *,
        seed: int = 0,
        report: Report = quiet,
        held_out: HeldOut | None = None,
    ):
        """Train `model` in place, stage after stage, in folder `out`; returns it.

        Called again with the same arguments it goes on where it stopped, and a finished run is only loaded. A run that
        was stopped and resumed with the same number of threads has the weights of one that was not, bit for bit. With
        `fsdp` the model stays in shards: as a whole it is in the folder `model`.
        Raises TrainError on wrong use and where memory does not suffice, Interrupted after Ctrl-C.
        """
        out = Path(out)
        # Everything that can be wrong is looked at first, so that no run ends after hours over a name in its settings.
        data, prepared = self.check(model, tokenizer)
        dtype = autocast_dtype(self.dtype, model)
        held = next((p.dtype for p in model.parameters() if p.requires_grad), torch.float32)
        config = {"seed": seed, "dtype": str(dtype or held).removeprefix("torch."), "model": describe_model(model)}
        settings = [describe_stage(s, d) for s, d in zip(self.stages, data, strict=True)]
        ranks.check_alike({"model": config, "settings or data": settings})
        if self.gradient_checkpointing:
            checkpoint_layers(model)
        if self.fsdp and ranks.size() > 1:
            shard_model(model)
        with locked(out):
            check_config(out / "config.json", config)
            log = MetricsLog(out / "metrics.jsonl")
            # Looked up before anything is trained: a stage starts from the weights of the one before it, and only a
            # stage that is done already is loaded in place of being trained.
            folders = [out / name for name in self.names()]
            newest = [checkpoint.latest(folder) for folder in folders]
            done = [checkpoint.step_of(found) if found else None for found in newest]
            for i, stage in enumerate(self.stages):
                check_stage(folders[i], stage, settings[i], done[i], any(d is not None for d in done[i + 1 :]))
            trained, patience = False, held_out.stop_after if held_out else None
            for i, stage in enumerate(self.stages):
                found = newest[i]
                if found and (done[i] == stage.steps or (patience and checkpoint.stale(found) >= patience)):
                    checkpoint.load_weights(model, found)
                    continue
                folders[i].mkdir(parents=True, exist_ok=True)
                stage = self.fitted(stage, folders[i], model, dtype, prepared[i])
                settings[i] |= {name: getattr(stage, name) for name in FITTED if hasattr(stage, name)}
                write_text(folders[i] / "stage.json", json.dumps(settings[i], indent=2) + "\n")
                # Each stage begins with fresh random states, so it does not depend on what was drawn before it, in
                # this process or in one that was stopped.
                seed_everything(seed)
                with (
                    resumable(),
                    StageRun(
                        folders[i].name, folders[i], model, tokenizer, seed=seed, log=log, report=report,
                        held_out=held_out, dtype=dtype, keep_last=self.keep_last, result=out / "model",
                    ) as run,
                ):  # fmt: skip
                    stage.train(run, prepared[i])
                trained = True
            # The result under a name of its own, in the form that everything around `transformers` reads.
            if ranks.from_first(lambda: trained or not (out / "model").exists()):
                result = merged(model) if self.merge and is_adapted(model) else model
                checkpoint.save_model(result, tokenizer, out / "model")
        ranks.wait()  # whoever goes on may read what the first one has written
        return model.eval()

    def check(self, model, tokenizer) -> tuple[list[Sequence[dict[str, Any]]], list[Any]]:
        """The examples of each stage, and what it made of them. Raises TrainError on whatever can be seen to be wrong
        before any training."""
        check_tokenizer(model, tokenizer)
        if self.keep_last < 1:
            raise TrainError(f"keep_last: expected at least 1, got {self.keep_last}")
        if is_sharded(model):
            raise TrainError("fsdp: this model is in shards, of an earlier run; load it again for another one")
        if self.fsdp and self.merge and is_adapted(model) and ranks.size() > 1:
            raise TrainError(
                "merge: adapters in shards are not merged; leave it out, and once the run is done delete its folder "
                "model and run the same with merge in one process"
            )
        served = [name for stage in self.stages if (name := getattr(stage, "engine", "own")) in SERVERS]
        if self.fsdp and served and is_adapted(model) and ranks.size() > 1:
            raise TrainError(
                f"rlvr.engine: {served[0]} takes adapters merged into the weights, and those in shards are not "
                "merged; leave fsdp out, or set engine to own"
            )
        for stage in self.stages:
            stage.check()
        data = [examples_of(stage) for stage in self.stages]
        return data, [s.prepare(model, tokenizer, d) for s, d in zip(self.stages, data, strict=True)]

    @staticmethod
    def fitted(stage: Any, folder: Path, model, dtype: torch.dtype | None, prepared: Any) -> Stage:
        """The stage with numbers of tokens and of rows at once, if it leaves them open: those it began with, so that it
        resumes bit for bit on a machine with less to spare; else what fits."""
        path = folder / "stage.json"
        what_fits: dict[str, Callable[[], int]] = {
            "max_tokens": lambda: tokens_that_fit(model, dtype),
            "rows": lambda: rows_that_fit(model, stage.longest_row(prepared), dtype),
        }
        open_ones = [name for name in FITTED if getattr(stage, name, 0) is None]

        def numbers() -> dict[str, int]:
            begun = read_table(path, "kind") if path.exists() else {}
            return {name: begun.get(name) or what_fits[name]() for name in open_ones}

        if not open_ones:
            return stage
        with whole(model):  # the first rank alone calls it
            return replace(stage, **ranks.from_first(numbers))

    def names(self) -> list[str]:
        """Folder names of the stages: 1-warmup, 2-rlvr."""
        return [f"{i}-{type(stage).__name__.lower()}" for i, stage in enumerate(self.stages, 1)]


def what_was_learned(folder: Path) -> str:
    """`2-rlvr 1 of 12 steps (skipped 11)` of a finished stage. TrainError if none of its steps changed the weights."""
    if not (newest := checkpoint.latest(folder)):  # a stage of someone's own, which keeps none
        return folder.name
    state = checkpoint.read_state(newest)
    left_out = ", ".join(f"{name} {state['counts'][name]}" for name in LEFT_OUT if state["counts"].get(name))
    said = f"{folder.name} {state['learned']} of {state['step']} steps" + (f" ({left_out})" if left_out else "")
    if not state["learned"]:
        raise TrainError(
            f"nothing was learned: {said}. A step is skipped where no group's rewards differ or no completion ends, it "
            f"is left out where its loss is not finite. Change reward, data or settings, and delete {folder}"
        )
    return said


@contextmanager
def resumable() -> Iterator[None]:
    """Says of what ends a stage how to go on."""
    try:
        yield
    except Interrupted as stop:
        raise Interrupted(f"{stop}; the same command resumes it") from None
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        said = str(error)
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in said):
            raise
        raise TrainError(
            "out of memory: lower max_tokens (padded tokens that go through the model at once) or rows (completions "
            "sampled at once) of the stage, or set gradient_checkpointing; none of these changes what is computed, "
            f"and the same command goes on from the last checkpoint ({said.splitlines()[0]})"
        ) from error
