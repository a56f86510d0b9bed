"""A server of vLLM (0.33 and later): tokens in and out by `/inference/v1/generate`, weights by its weight transfer.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --logprobs-mode processed_logprobs

How the server takes weights is its own setting, `--weight-transfer-config`. Without one, and with the backend "disk",
it loads them from a folder. With "nccl" (a GPU of its own) or "ipc" (colocated: on the trainer's GPU) they go from
GPU to GPU by vLLM's own trainer side, which has to be installed beside warpup.

With `--return-sampling-mask` it tells which tokens top-k, top-p and min-p have left, with
`--enable-return-routed-experts` which experts a mixture took; both are replayed by the loss.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import socket
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor

from .. import ranks
from ..errors import TrainError
from ..model.fsdp import reshard
from ..model.lora import is_adapted
from ..model.tokens import Tokens
from .protocol import Completion, SamplingParams, rollouts_of
from .server import ServerEngine

ON_GPU = ("nccl", "ipc")


class VLLM(ServerEngine):
    name = "vLLM"
    start = "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --logprobs-mode processed_logprobs"

    backend: str | None = None  # of the server's weight transfer
    trainer: Any = None  # vLLM's sending side, of a backend that goes from GPU to GPU

    def check(self, model, params: SamplingParams, longest: int) -> None:
        config = self.ask("/server_info?config_format=json", post=False)["vllm_config"]
        limit, mode = config["model_config"]["max_model_len"], config["model_config"]["logprobs_mode"]
        if longest > limit:
            raise TrainError(
                f"rlvr.max_new_tokens: the longest prompt and its completion have {longest} tokens, {self.url} takes "
                f"{limit}; start it with --max-model-len {longest}"
            )
        if mode != "processed_logprobs" and (params.temperature != 1 or params.filtered):
            raise TrainError(
                f"rlvr.engine_url: {self.url} gives {mode}, those before the temperature and the filters; start it "
                "with --logprobs-mode processed_logprobs"
            )
        if params.filtered and not config["model_config"]["return_sampling_mask"]:
            raise TrainError(
                f"rlvr.engine_url: {self.url} does not tell which tokens top_p, top_k and min_p have left, which the "
                "loss needs; start it with --return-sampling-mask"
            )
        self._check_transfer(model, (config.get("weight_transfer_config") or {}).get("backend"))
        few = SamplingParams(params.eos, params.pad, 1, params.generator, filters=params.filters)
        rollouts_of(self.complete([params.pad], few, 0), few, self.name)

    def _check_transfer(self, model, backend: str | None) -> None:
        """What is in the way of this backend."""
        self.backend, other = backend, "start it without --weight-transfer-config, and it takes weights from a folder"
        if backend not in (None, "disk", *ON_GPU):
            raise TrainError(f"rlvr.engine_url: {self.url} takes weights by {backend}, which warpup does not; {other}")
        if backend not in ON_GPU:
            return
        if importlib.util.find_spec("vllm") is None:
            raise TrainError(f"rlvr.engine_url: {self.url} takes weights by {backend}, which needs vllm here; {other}")
        if model.device.type != "cuda" or is_adapted(model):
            what = "adapters" if is_adapted(model) else f"a model on {model.device.type}"
            raise TrainError(f"rlvr.engine_url: {self.url} takes weights by {backend}, not those of {what}; {other}")

    def complete(self, prompt: Tokens, params: SamplingParams, seed: int) -> list[Completion]:
        sampling = {
            "n": params.copies, "max_tokens": params.max_new_tokens, "temperature": params.temperature, "seed": seed,
            **{name: params.filters[name] for name in ("top_p", "top_k", "min_p") if name in params.filters},
            "logprobs": 0,  # of the sampled tokens alone
            "stop_token_ids": list(params.eos), "stop": list(params.stop.texts) if params.stop else [],
        }  # fmt: skip
        answer = self.ask("/inference/v1/generate", {"token_ids": list(prompt), "sampling_params": sampling})
        return [self._read(choice) for choice in sorted(answer["choices"], key=lambda choice: choice["index"])]

    def _read(self, choice: dict[str, Any]) -> Completion:
        if choice["finish_reason"] not in ("stop", "length"):
            raise TrainError(f"{self.name}: a completion has ended by {choice['finish_reason']!r}")
        logp = [token["logprob"] for token in (choice["logprobs"] or {}).get("content") or ()]
        experts = choice.get("routed_experts")
        return Completion(
            choice["token_ids"], logp, choice["finish_reason"] == "stop", choice.get("sampling_mask"),
            None if experts is None else decode_array(experts),
        )  # fmt: skip

    def transfer(self, model) -> None:
        first = ranks.rank() == 0
        if first:  # "keep" leaves requests where they are; the cache of the old weights is cleared
            self.ask("/pause?mode=keep&clear_cache=true")
        try:
            if self.backend in ON_GPU:
                reshard(model)
                self.trainer = self.trainer or self._joined(model)
                self.trainer.send_weights()
                return
            path = self.leave(model)
            if first and self.backend == "disk":
                self.ask("/init_weight_transfer_engine", {"init_info": {}})
                self.ask("/start_weight_update")
                self.ask("/update_weights", {"update_info": {"path": path}})
                self.ask("/finish_weight_update")
            elif first:
                self.ask("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}})
        finally:
            if first:
                self.ask("/resume")

    def _joined(self, model) -> Any:
        """vLLM's sending side, one on each rank, since of a model in shards they put each weight together; the first
        one's and the server's have met."""
        from vllm.distributed.weight_transfer import (  # pyright: ignore[reportMissingImports]
            HTTPVLLMWeightSyncClient,
            ModuleSource,
            WeightTransferTrainerFactory,
        )

        if self.backend == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import (  # pyright: ignore[reportMissingImports]
                IPCTrainerInitInfo,
            )

            info = IPCTrainerInitInfo(rank=ranks.rank())
        else:
            from vllm.distributed.weight_transfer.nccl_engine import (  # pyright: ignore[reportMissingImports]
                NCCLTrainerInitInfo,
            )

            workers = self.ask("/get_world_size", post=False)["world_size"]
            address, port = own_address(self.url)
            info = NCCLTrainerInitInfo(address, port, workers + 1, rank=ranks.rank())
        client = HTTPVLLMWeightSyncClient(self.url)
        return WeightTransferTrainerFactory.trainer_init(init_info=info, client=client, source=ModuleSource(model))


def decode_array(text: str) -> Tensor:
    """A tensor of int32 from base64 of NumPy's .npy format."""
    array = np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)
    return torch.from_numpy(array.astype(np.int32))


def own_address(url: str) -> tuple[str, int]:
    """The address of this machine that a server sees, and a port that is free."""
    to = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route, socket.socket() as free:
        route.connect((to.hostname, to.port or 80))
        free.bind(("", 0))
        return route.getsockname()[0], free.getsockname()[1]
