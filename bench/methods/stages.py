"""Stages of the trainer in an arm: a run in a folder that nobody looks at afterwards."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence

from transformers.utils import logging

from warpup.train import Recipe, Stage

logging.disable_progress_bar()  # of the model that each run writes
ALIKE = {"max_tokens": 8192}  # a setting of all stages; what fits into memory would differ between machines


def run(
    stages: Sequence[Stage], model, tokenizer, seed: int, *, after: Callable | None = None, folder: str | None = None
):
    """A copy of the model, trained by these stages, in a folder that is gone afterwards if none is given. after(model,
    step) is called behind each step."""
    model = copy.deepcopy(model)
    options = {"report": lambda stage, step, steps, numbers: after(model, step)} if after else {}
    with tempfile.TemporaryDirectory() as temporary:
        return Recipe(stages).run(model, tokenizer, folder or temporary, seed=seed, **options)
