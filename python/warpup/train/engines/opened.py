"""The engine that a stage's settings name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from warpup.data import Sampler

from .. import ranks
from ..errors import TrainError
from ..run import StageRun
from ..sampling.prompts import Prompts
from ..sampling.rounds import sampling_params
from .ahead import sampling_ahead
from .own import OwnSampler
from .protocol import Engine
from .server import ServerEngine
from .settings import SERVERS
from .sglang import SGLang
from .vllm import VLLM

if TYPE_CHECKING:
    from ..stages.rlvr_settings import RLVRSettings

KINDS: dict[str, type[ServerEngine]] = {"vllm": VLLM, "sglang": SGLang}


def server_of(settings: RLVRSettings, model, prompts: Prompts, pad: int, folder: Path | None = None) -> ServerEngine:
    """The server, after it has shown that it can do what is asked of it. TrainError if it cannot."""
    server = KINDS[settings.engine](settings.engine_url, folder)
    longest = max(map(len, prompts.ids)) + settings.max_new_tokens
    server.check(model, sampling_params(settings, prompts, pad, torch.Generator()), longest)
    return server


def check_opens(settings: RLVRSettings, model, prompts: Prompts, pad: int) -> None:
    """Raise TrainError where the engine is not there, or cannot do what is asked of it."""
    if settings.engine in SERVERS:
        server_of(settings, model, prompts, pad)
    elif settings.engine == "transformers":
        if ranks.size() > 1:
            raise TrainError("rlvr.engine: transformers samples in one process; set it to own, vllm or sglang")
        if not hasattr(model, "generate_batch"):
            raise TrainError(
                f"rlvr.engine: {type(model).__name__} of this transformers has no generate_batch; set it to own"
            )


@contextmanager
def opened(
    settings: RLVRSettings, run: StageRun, prompts: Prompts, sampler: Sampler
) -> Iterator[tuple[Engine, Sampler]]:
    """Who samples completions, and who picks their prompts."""
    if settings.engine == "own":
        yield OwnSampler(run.model), sampler
    elif settings.engine == "transformers":
        from .transformers import ContinuousBatching

        yield ContinuousBatching(run.model), sampler
    else:
        pad, folder = run.tokenizer.pad_token_id, run.folder.resolve() / "engine"
        if settings.engine_folder:  # where other runs may have theirs
            name = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
            folder = Path(settings.engine_folder).resolve() / f"warpup-{name}"
        server = server_of(settings, run.model, prompts, pad, folder)

        def ask(picked):
            return [prompts.ids[k] for k in picked], sampling_params(settings, prompts, pad, run.generator)

        def left():
            return settings.steps - run.at

        with sampling_ahead(server, sampler, settings.max_staleness, ask, left) as ahead:
            yield ahead, ahead
