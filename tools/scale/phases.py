"""The phases of a step: what one GPU has to do in each, and how long that takes at least.

A phase is a function of model, batch, GPUs and machine that returns `Work`. What operators of warpup move through
memory is what their case tables declare (`tests/<family>/spec_<op>.py`), as in the benchmarks.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from functools import cache

import torch

from tools.scale.sizes import BF16, FP32, Batch, Machine, Model


@dataclass(frozen=True)
class Work:
    """What one GPU does in a phase: FLOPs, bytes through its memory, that it receives over NVLink and over the network,
    and seconds in which it waits."""

    flops: float = 0.0
    memory: float = 0.0
    nvlink: float = 0.0
    network: float = 0.0
    waits: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Work:
        return Work(*(times * a for a in astuple(self)))

    def each(self, machine: Machine) -> dict[str, float]:
        """Seconds that each of the four would take alone."""
        return {
            "products": self.flops / (machine.flops * machine.reached),
            "memory": self.memory / machine.bandwidth,
            "NVLink": self.nvlink / machine.nvlink,
            "network": self.network / machine.network,
        }

    def seconds(self, machine: Machine) -> float:
        return max(self.each(machine).values()) + self.waits

    def limit(self, machine: Machine) -> str:
        each = self.each(machine)
        found = max(each, key=each.__getitem__)
        return found if each[found] > self.waits else "latency"


# ---- Exchanges ------------------------------------------------------------------------------------------------------


def ring(size: float, gpus: int, machine: Machine) -> Work:
    """An all-gather or a reduce-scatter of `size` bytes: all but its own part reaches each GPU. Across nodes there are
    as many rings as a node has GPUs, and each enters the node by another one's port."""
    if gpus <= machine.node:
        return Work(nvlink=size * (1 - 1 / gpus))
    return Work(nvlink=size * (1 - 1 / machine.node), network=size / machine.node * (1 - machine.node / gpus))


def summed(model: Model) -> int:
    """Bytes of gradients that a process hands in for an update, where each holds the whole model (`ranks.py`)."""
    return FP32 * model.parameters


def gathered(model: Model, gpus: int, machine: Machine) -> tuple[Work, Work, Work]:
    """Weights in shards over all GPUs (FSDP2): what brings them together once, what moves tokens to experts (nothing),
    what sums the gradients. Weights come in bfloat16, gradients are summed in float32."""
    return ring(BF16 * model.parameters, gpus, machine), Work(), ring(FP32 * model.parameters, gpus, machine)


def dispatched(model: Model, tokens: float, gpus: int, machine: Machine) -> tuple[Work, Work, Work]:
    """The same where each GPU owns an equal part of the experts, and tokens travel to them and back (`ShardedExperts`).
    With more GPUs than experts, an expert's weights lie in shards over those that own it."""
    owners = min(model.experts, gpus)
    dense, shards = model.parameters - model.routed, (1 - owners / gpus) / owners
    weights = ring(BF16 * dense, gpus, machine) + Work(network=BF16 * model.routed * shards)
    gradients = ring(FP32 * dense, gpus, machine) + Work(network=FP32 * model.routed * shards)
    there_and_back = 2 * BF16 * travelling(model, tokens, owners)
    near = min(1.0, (machine.node - 1) / (owners - 1))  # of it stays in the node
    return weights, Work(nvlink=there_and_back * near, network=there_and_back * (1 - near)), gradients


def travelling(model: Model, tokens: float, owners: int) -> float:
    """Numbers that leave a GPU for experts elsewhere, one way, with equal load: a copy for each expert of a token."""
    return model.layers * tokens * model.active * model.hidden * (1 - 1 / owners)


def exchanges(model: Model, tokens: float, gpus: int, machine: Machine) -> tuple[Work, Work, Work]:
    """The quicker of the two ways for an update of a micro-batch of `tokens`."""
    ways = [gathered(model, gpus, machine)]
    if model.experts:
        ways.append(dispatched(model, tokens, gpus, machine))
    return min(ways, key=lambda way: (way[0] * 2 + way[1] * 3 + way[2]).seconds(machine))


# ---- Sampling -------------------------------------------------------------------------------------------------------


def rollout(model: Model, batch: Batch, gpus: int, machine: Machine, beside: float = 0.0) -> Work | None:
    """Sampling, in the quickest of groups of 1 to 8 GPUs that hold the model together; None if none of them can.

    A decoding step reads the weights (of a mixture those of the experts that its tokens meet) and the keys and values
    of all completions at work; so many are as memory has room for, `beside` what else a GPU holds. It takes as many
    steps as the longest completion has tokens, or more where not all are at work at once."""
    found = []
    for group in (g for g in (1, 2, 4, 8) if g <= gpus):
        tokens, context = batch.learned * group / gpus, batch.prompt + batch.completion / 2
        split = min(group, model.kv_heads)  # over more GPUs keys and values are copied
        free = machine.usable * machine.memory - beside - BF16 * model.parameters / group
        room = min(split * free / (model.cached * context), batch.completions * group / gpus)  # completions at work
        if room < 1:
            continue
        steps = max(batch.longest, tokens / room)
        met = 1 - (1 - model.active / model.experts) ** (tokens / steps) if model.experts else 1.0
        read = BF16 * (model.parameters - model.vocab * model.hidden - model.routed * (1 - met))
        prompts = batch.prompts * batch.prompt * group / gpus
        flops = model.flops(tokens, context, tokens) + model.flops(prompts, batch.prompt / 2, 0)
        sums = 2 * model.layers * (group > 1)  # all-reduces of a step: behind attention and MLP of each layer
        found.append(
            Work(
                flops=flops / group,
                memory=steps * read / group + tokens * context * model.cached / split,
                nvlink=sums * tokens * BF16 * model.hidden * 2 * (1 - 1 / group),
                waits=sums * steps * machine.latency,
            )
        )
    return min(found, key=lambda work: work.seconds(machine), default=None)


# ---- Learning -------------------------------------------------------------------------------------------------------


@cache
def declared(op: str, *shapes: tuple[str, tuple[int, ...], torch.dtype]) -> tuple[int, int]:
    """Bytes that an operator must move, forward and backward, by its case table, for operands of these shapes."""
    from tests.support.cases import OPS

    return OPS[op].bytes({name: torch.empty(shape, dtype=dtype, device="meta") for name, shape, dtype in shapes})


def pieces(batch: Batch, gpus: int, updates: int) -> tuple[int, int]:
    """Micro-batches that a GPU sends through the model, those of an update alike, and the tokens of one."""
    count = updates * math.ceil(batch.tokens / (updates * gpus * batch.micro))
    return count, round(batch.tokens / (gpus * count))


def forward(model: Model, batch: Batch, tokens: int) -> Work:
    """Of a micro-batch. Memory: operators of warpup by their case tables, the other weights once; what other layers
    read and write beside is not counted."""
    rows = round(tokens * batch.learned / batch.tokens)
    bf16 = torch.bfloat16
    moved = BF16 * model.layers * (model.attention + (0 if model.experts else model.expert))
    head = ("hidden", (rows, model.hidden), bf16), ("weight", (model.vocab, model.hidden), bf16)
    moved += declared("linear_logprob", *head)[0]
    if model.experts:
        up, down = (model.experts, 2 * model.inner, model.hidden), (model.experts, model.hidden, model.inner)
        experts = ("x", (tokens, model.hidden), bf16), ("w_gate_up", up, bf16), ("w_down", down, bf16)
        moved += model.layers * declared("moe_experts", *experts)[0]
    return Work(flops=model.flops(tokens, batch.context, rows), memory=moved)


def logprobs(model: Model, batch: Batch, gpus: int, machine: Machine) -> Work:
    """Log-probs of what was sampled under one model, the policy or its reference: a forward."""
    count, tokens = pieces(batch, gpus, 1)
    weights, travel, _ = exchanges(model, tokens, gpus, machine)
    return (forward(model, batch, tokens) + weights + travel) * count


def update(model: Model, batch: Batch, gpus: int, machine: Machine) -> Work:
    """Forward and backward: twice the forward's products, and the layers' forward again (activation checkpointing).
    Weights are gathered for either, gradients summed with each micro-batch."""
    count, tokens = pieces(batch, gpus, batch.updates)
    weights, travel, gradients = exchanges(model, tokens, gpus, machine)
    once, again = forward(model, batch, tokens), Work(flops=model.flops(tokens, batch.context, 0))
    rows = round(tokens * batch.learned / batch.tokens)
    loss = sum(declared("policy_loss", *((name, (rows,), torch.float32) for name in ("logp", "old_logp", "mask"))))
    return (once * 3 + again + Work(memory=once.memory + loss) + weights * 2 + travel * 3 + gradients) * count


def optimizer(model: Model, batch: Batch, gpus: int, machine: Machine) -> Work:
    """AdamW on a shard, `updates` times: the gradient's norm; weight, gradient and both moments read; three written."""
    return Work(memory=FP32 * (1 + 4 + 3) * model.parameters / gpus * batch.updates)


def transfer(model: Model, batch: Batch, gpus: int, machine: Machine) -> Work:
    """The new weights to the samplers, in bfloat16."""
    return ring(BF16 * model.parameters, gpus, machine)


def state(model: Model, gpus: int) -> float:
    """Bytes of a GPU's shard of weights, gradients and both moments."""
    return FP32 * 4 * model.parameters / gpus


def held(model: Model, batch: Batch, gpus: int) -> float:
    """The most that learning holds: the shard, inputs of all layers for the checkpoints, two gathered layers and the
    gradients of one. The output layer's tile is small beside it."""
    layer = model.attention + (model.experts or 1) * model.expert
    tokens = pieces(batch, gpus, batch.updates)[1]
    return state(model, gpus) + BF16 * tokens * model.hidden * model.layers + layer * (2 * BF16 + FP32)


def learning(model: Model, batch: Batch, gpus: int, machine: Machine) -> dict[str, Work] | None:
    """The phases behind sampling in their order; None where the model does not fit."""
    if held(model, batch, gpus) > machine.usable * machine.memory:
        return None
    scored = logprobs(model, batch, gpus, machine)
    rest = {"update": update, "optimizer": optimizer, "transfer": transfer}
    rest = {name: phase(model, batch, gpus, machine) for name, phase in rest.items()}
    return {"old log-probs": scored, "reference": scored} | rest


def step(model: Model, batch: Batch, gpus: int, machine: Machine) -> dict[str, Work] | None:
    """All phases, one after the other on all GPUs; None where the model does not fit."""
    learned, sampled = learning(model, batch, gpus, machine), rollout(model, batch, gpus, machine, state(model, gpus))
    return {"rollout": sampled} | learned if learned and sampled else None


def overlapped(model: Model, batch: Batch, gpus: int, machine: Machine) -> tuple[float, int] | None:
    """Seconds of a step in which some nodes sample the next batch while the others learn from the last one, at the best
    split, and the GPUs that sample; None where there are not enough nodes."""
    found = []
    for sampling in range(machine.node, gpus, machine.node):
        sampled, learned = rollout(model, batch, sampling, machine), learning(model, batch, gpus - sampling, machine)
        if sampled and learned:
            learned_in = sum(work.seconds(machine) for work in learned.values())
            found.append((max(sampled.seconds(machine), learned_in), sampling))
    return min(found, default=None)
