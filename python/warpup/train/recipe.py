"""A recipe: stages that train one model in turn, in one folder that any later call resumes or reuses.

OUT/config.json            what the run is; a folder that holds another run is refused
OUT/metrics.jsonl          one line a step
OUT/1-warmup/step-...      newest checkpoint of each stage (see checkpoint.py)
OUT/model                  the trained model, as `transformers` saves it
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import checkpoint
from .batch import check_tokenizer
from .errors import Interrupted
from .examples import examples_of
from .files import locked, write_folder
from .log import MetricsLog, Report, quiet
from .run import HeldOut, StageRun
from .run_config import check_config, describe_model, describe_stage, seed_everything


@dataclass
class Recipe:
    """Stages, each with settings as fields, `check()` and `train(run, examples)`; see `Warmup` and `RLVR`."""

    stages: Sequence[Any]

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
        was stopped and resumed with the same number of threads has the weights of one that was not, bit for bit.
        Raises TrainError on wrong use, Interrupted after Ctrl-C.
        """
        out = Path(out)
        # Everything that can be wrong is looked at first, so that no run ends after hours over a name in its settings.
        check_tokenizer(model, tokenizer)
        for stage in self.stages:
            stage.check()
        data = [examples_of(stage) for stage in self.stages]
        config = {
            "seed": seed,
            "model": describe_model(model),
            "stages": [describe_stage(s, d) for s, d in zip(self.stages, data, strict=True)],
        }
        with locked(out):
            check_config(out / "config.json", config)
            log = MetricsLog(out / "metrics.jsonl")
            # Looked up before anything is trained: a stage starts from the weights of the one before it, and only a
            # stage that is done already is loaded in place of being trained.
            newest = [checkpoint.latest(out / name) for name in self.names()]
            for found, name, stage, examples in zip(newest, self.names(), self.stages, data, strict=True):
                if found and checkpoint.step_of(found) == stage.steps:
                    checkpoint.load_weights(model, found)
                    continue
                # Each stage begins with fresh random states, so it does not depend on what was drawn before it, in
                # this process or in one that was stopped.
                seed_everything(seed)
                try:
                    with StageRun(
                        name, out / name, model, tokenizer, seed=seed, log=log, report=report, held_out=held_out
                    ) as run:
                        stage.train(run, examples)
                except Interrupted as stop:
                    raise Interrupted(f"{stop}; the same command resumes it") from None
            # The result under a name of its own, in the form that everything around `transformers` reads.
            if not (out / "model").exists():
                write_folder(out / "model", lambda path: checkpoint.save_weights(model, tokenizer, path))
        return model.eval()

    def names(self) -> list[str]:
        """Folder names of the stages: 1-warmup, 2-rlvr."""
        return [f"{i}-{type(stage).__name__.lower()}" for i, stage in enumerate(self.stages, 1)]
