"""Router replay: a mixture of transformers goes through the experts that the sampler used.

    with replay_experts(model, experts):
        model(input_ids).logits ... loss.backward()

An engine rounds differently from the trainer, so where two experts are nearly as good it takes another one: its tokens
then come from another function than the one that is trained, and importance ratios are far from 1. With the engine's
own choice replayed, what is left is rounding. The router stays live: the weights of these experts come from its scores,
and so do its gradients (arXiv 2507.18071 calls it routing replay; 2510.11370 rollout routing replay).

vLLM returns the choice as `routed_experts` (`enable_return_routed_experts`), (tokens, layers, k) a request;
`record_experts` takes it from a model of transformers, under `generate` too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.overrides import TorchFunctionMode

from warpup.train.model.routers import INDICES, takes_indices


def routed_blocks(model: nn.Module) -> list[tuple[str, nn.Module, Any]]:
    """(name, block, its experts) of each layer of routed experts, in the model's order. ValueError if there is none."""
    found = [
        (name, block, experts)
        for name, block in model.named_modules()
        for experts in block.children()
        if takes_indices(experts)
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no layer of routed experts whose choice could be replayed")
    return found


class _Replay(TorchFunctionMode):
    """While open, `torch.topk` among all experts gives the recorded ones, with the values that these have now."""

    def __init__(self, recorded: Tensor, experts: int):
        super().__init__()
        self.recorded, self.experts, self.done = recorded, experts, False  # recorded (B, T, k)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if function not in (torch.topk, Tensor.topk):
            return found
        scores, k = args[0], self.recorded.shape[-1]
        if scores.shape[1:] != (self.experts,) or found[1].shape[1:] != (k,):
            return found
        batch, length = self.recorded.shape[:2]
        rows, rest = divmod(len(scores), batch) if batch else (0, 1)
        if rest or rows < length:
            raise ValueError(
                f"replay_experts: experts are those of {batch} sequences of {length} tokens, the model was given "
                f"{len(scores)} tokens"
            )
        indices = pad(self.recorded, (0, 0, 0, rows - length), value=-1).reshape(-1, k)
        indices = torch.where((indices >= 0).all(1, keepdim=True), indices, found[1])
        self.done = True
        return torch.return_types.topk((scores.gather(1, indices), indices))


@contextmanager
def replay_experts(model: nn.Module, experts: Tensor) -> Iterator[None]:
    """While open, each layer of routed experts goes through these, instead of those that its router would choose.

    Args:
        model: of transformers, its routers choosing by `torch.topk` of their scores (Qwen, Mixtral, GPT-OSS, DeepSeek,
            GLM, ...). Where groups of experts are left out first and their scores set to 0 (DeepSeek-V2's
            group-limited choice), a recorded expert of such a group has weight 0.
        experts: (B, T, L, k) integers, B the rows of the model's input (1 if it is packed). T may be less than the
            input's length: for the tokens after, as for a row of -1, the router chooses. L is the number of layers with
            routed experts, or of all layers, as engines count them.

    The backward belongs inside too where activations are checkpointed: it runs the routers again.

    Raises:
        ValueError: the model has no routed experts; a shape, dtype or id does not fit. (Ids on a GPU are not looked at,
            which would wait for it.)
        RuntimeError: a layer ran and did not choose its experts in this way, so nothing could be replayed.
    """
    blocks = routed_blocks(model)
    if experts.dim() != 4 or experts.is_floating_point() or experts.dtype == torch.bool:
        raise ValueError(
            f"replay_experts: experts must be (B, T, L, k) integers, got {experts.dtype}, shape {tuple(experts.shape)}"
        )
    layers = _layers(model, [name for name, *_ in blocks], experts.shape[2])
    with ExitStack() as undo:
        for layer, (name, block, module) in zip(layers, blocks, strict=True):
            recorded, number = experts[:, :, layer].long(), module.num_experts
            if not recorded.is_cuda and (recorded >= number).any():
                raise ValueError(f"replay_experts: {name} has {number} experts, got {int(recorded.max())}")
            device = next(block.parameters()).device
            undo.callback(_restore, block, block.__dict__.get("forward"))
            block.forward = _replaying(name, block, recorded.to(device), number)
        yield


def _layers(model: Any, names: list[str], count: int) -> list[int]:
    """Which of the `count` recorded layers belongs to each block."""
    if count == len(names):
        return list(range(count))
    numbers = [re.search(r"\.(\d+)\.", name) for name in names]
    if count == model.config.get_text_config().num_hidden_layers and all(numbers):
        return [int(number[1]) for number in numbers if number]
    raise ValueError(
        f"replay_experts: experts are those of {count} layers, {type(model).__name__} has {len(names)} with routed "
        f"experts of {model.config.get_text_config().num_hidden_layers}"
    )


def _replaying(name: str, block: nn.Module, recorded: Tensor, experts: int) -> Callable:
    run = block.forward

    def forward(*arguments, **named):
        with _Replay(recorded, experts) as replay:
            found = run(*arguments, **named)
        if not replay.done:
            raise RuntimeError(
                f"replay_experts: {name} ({type(block).__name__}) did not choose {recorded.shape[-1]} of {experts} "
                "experts by torch.topk, so nothing can be replayed"
            )
        return found

    return forward


def _restore(block: nn.Module, forward: Callable | None) -> None:
    if forward is None:
        del block.forward
    else:
        block.forward = forward


class Recorded:
    """What the routers have chosen so far."""

    def __init__(self, rows: int, layers: int):
        self.rows, self.chosen = rows, [[] for _ in range(layers)]

    def experts(self) -> Tensor:
        """(rows, T, L, k) int32, T the tokens of all forward passes; for `replay_experts`. ValueError before any."""
        if not all(self.chosen):
            raise ValueError("record_experts: the model has run nothing yet")
        return torch.stack([torch.cat(layer, 1) for layer in self.chosen], 2)


@contextmanager
def record_experts(model: nn.Module, rows: int) -> Iterator[Recorded]:
    """While open, keeps which experts the model's routers choose, of `rows` sequences at once; the tokens of several
    forward passes, as `generate` makes them, follow each other. (The last token that is sampled goes through no model.)

    Raises ValueError where the model has no routed experts, and where it is given other than `rows` sequences."""
    blocks = routed_blocks(model)
    recorded = Recorded(rows, len(blocks))

    def keep(layer: list[Tensor]) -> Callable:
        def hook(module, arguments, named):
            indices = arguments[1] if len(arguments) > 1 else next(named[name] for name in INDICES if name in named)
            tokens = indices.numel() // indices.shape[-1]
            if rows < 1 or tokens % rows:
                raise ValueError(f"record_experts: rows is {rows}, and the model was given {tokens} tokens")
            layer.append(indices.detach().int().reshape(rows, -1, indices.shape[-1]))

        return hook

    with ExitStack() as undo:
        for layer, (_, _, experts) in zip(recorded.chosen, blocks, strict=True):
            undo.callback(experts.register_forward_pre_hook(keep(layer), with_kwargs=True).remove)
        yield recorded
