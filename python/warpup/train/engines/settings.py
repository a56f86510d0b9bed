"""Who samples, as settings of RLVR, and what the engines cannot follow: told before any work. Nothing here imports
torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..checks import check_not_negative, check_unused
from ..errors import TrainError
from ..settings import EngineName

if TYPE_CHECKING:
    from ..stages.rlvr_settings import RLVRSettings

SERVERS = {"vllm": "http://localhost:8000", "sglang": "http://localhost:30000"}  # and where they are by default

# Settings that stand between logits and tokens, or that sample from within a completion: the own sampler's.
OWN = (
    "environment", "schedule", "thinking_budget", "logit_bias", "repetition", "presence", "frequency", "top_h",
    "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip


@dataclass(kw_only=True)  # data stay the first argument of the stage
class EngineSettings:
    """Who samples."""

    engine: EngineName = "own"
    """Who samples completions: the trainer's own sampler; transformers' continuous batching, on the same model; or a
    server of vLLM or SGLang."""
    engine_url: str = ""
    """Where that server is, such as http://localhost:8000."""
    engine_folder: str = ""
    """Folder in which weights are left for that server to load, under one path for both; empty: one in the stage's
    folder."""
    max_staleness: int = 0
    """Steps that the server may sample ahead of the update: so many updates at most are between the weights that
    sampled a completion and those that learn from it; 0: it samples when all is learned."""


def check_engine(settings: RLVRSettings, place: str) -> None:
    """Raise TrainError on settings that no engine can have, or that this one would not follow."""
    engine = settings.engine
    check_not_negative(settings, "max_staleness", place=place)
    if engine not in SERVERS:
        why = f"engine {engine!r} is no server; leave it out, or set engine to vllm or sglang"
        check_unused(settings, "engine_url", "engine_folder", "max_staleness", place=place, why=why)
    if engine == "own":
        if settings.correction == "off":
            raise TrainError(
                f"{place}.correction: got 'off', but the own sampler has none unless it is set; leave it out"
            )
        return
    why = f"engine {engine!r} does not follow it; leave it out, or set engine to own"
    check_unused(settings, *OWN, place=place, why=why)
    if settings.advantage in ("segment", "tree"):
        raise TrainError(
            f"{place}.advantage: {settings.advantage!r} samples from within a completion; set engine to own"
        )
    if engine == "transformers":
        check_unused(settings, "top_p", "top_k", "min_p", "stop", place=place, why=why)
        return
    check_unused(settings, "rows", place=place, why="the server has its own limit; leave it out")
    url = urlsplit(settings.engine_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise TrainError(
            f"{place}.engine_url: expected where {engine}'s server is, such as {SERVERS[engine]!r}, got "
            f"{settings.engine_url!r}"
        )
    if settings.engine_folder and not Path(settings.engine_folder).is_dir():
        raise TrainError(
            f"{place}.engine_folder: expected a folder that {engine}'s server sees under the same path, got "
            f"{settings.engine_folder!r}"
        )
    if settings.max_staleness:
        why = "what is sampled ahead is a whole step's; leave it out, or set max_staleness to 0"
        check_unused(settings, "refill", place=place, why=why)
