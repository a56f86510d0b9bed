"""An inference server over HTTP: JSON in, JSON out; what the engines of vLLM and SGLang have in common."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .. import checkpoint, ranks
from ..errors import TrainError
from ..model.lora import is_adapted, merged
from ..model.tokens import Tokens
from ..sampling.rollouts import Rollouts
from .protocol import Completion, SamplingParams, rollouts_of

CONNECTIONS = 128  # requests at once, each for all completions of a prompt
TIMEOUT = 3600.0  # seconds that the server may take for one answer


class ServerEngine(ABC):
    """A server that samples. Its kinds say how it is asked (`complete`), how it takes weights (`transfer`), and what
    would be in the way (`check`).

    url: where it is. folder: where weights are left for it to load, a folder of its own under the same path for both.
    """

    name = ""  # as messages have it
    start = ""  # the command that starts a server which is good for this

    def __init__(self, url: str, folder: Path | None = None):
        self.url, self.folder = url.rstrip("/"), folder

    @abstractmethod
    def check(self, model, params: SamplingParams, longest: int) -> None:
        """Raise TrainError where the server is not there, or cannot do what is asked: prompts with completions of up to
        `longest` tokens. One token is sampled to see it."""

    @abstractmethod
    def complete(self, prompt: Tokens, params: SamplingParams, seed: int) -> list[Completion]:
        """`params.copies` completions of a prompt."""

    @abstractmethod
    def transfer(self, model) -> None:
        """Give the server these weights; called on all ranks."""

    def generate(self, prompts: Sequence[Tokens], params: SamplingParams) -> Rollouts:
        seeds = params.seeds(len(prompts))
        with ThreadPoolExecutor(min(len(prompts), CONNECTIONS)) as pool:
            groups = list(pool.map(self.complete, prompts, [params] * len(prompts), seeds))
        return rollouts_of([one for group in groups for one in group], params, self.name)

    def update_weights(self, model) -> None:
        """Requests on their way wait meanwhile, and go on with the new weights; what was computed of their tokens with
        the old ones is computed anew."""
        self.transfer(merged(model) if is_adapted(model) else model)

    def leave(self, model) -> str:
        """Write the weights to the folder; its path."""
        assert self.folder
        checkpoint.save_model(model, None, self.folder)
        return str(self.folder)

    def close(self) -> None:
        """Nothing is left behind."""
        if ranks.rank() == 0 and self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, path: str, body: Any = None, *, post: bool = True) -> Any:
        """The server's answer. TrainError where there is none, or where it refuses, with what it says."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, headers={"Content-Type": "application/json"}, method="POST" if post else "GET"
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                said = answer.read()
        except urllib.error.HTTPError as error:
            why = " ".join(error.read().decode(errors="replace").split())[:500]
            raise TrainError(f"rlvr.engine_url: {self.url}{path} refuses ({error.code}): {why}") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise TrainError(
                f"rlvr.engine_url: no answer from {self.url} ({reason}); start {self.name} there: {self.start}"
            ) from error
        try:
            return json.loads(said) if said else None
        except ValueError as error:
            raise TrainError(
                f"rlvr.engine_url: what answers at {self.url}{path} is not {self.name}: {said[:80]!r}"
            ) from error
