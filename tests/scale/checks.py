"""What each process of a group does in test_scale.py: exchanges whose bytes are counted."""

import json
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from tests.distributed.checks import wire
from tests.support.processes import become
from tests.support.tiny import TOKENIZER, llama, rlvr
from warpup.distributed import ShardedExperts
from warpup.train import Recipe
from warpup.train.ranks import data_parallel

NAMES = ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "all_gather_single", "reduce_scatter_single")
COLLECTIVES = [name for name in NAMES if hasattr(dist, name)]  # torch 2.13 has the last two, and FSDP2 calls them
TINY = {"vocab_size": -(-len(TOKENIZER) // 4) * 4, "tie_word_embeddings": False}  # even shards for 2 and 4 processes
EXPERTS = {"hidden": 12, "intermediate": 10, "experts": 8}


@contextmanager
def counted():
    """Within, every collective leaves its name and the shape and bytes of the whole tensor that it makes or sums."""
    calls, real = [], {name: getattr(dist, name) for name in COLLECTIVES}

    def counting(name):
        def call(*arguments, **options):
            tensors = [t for t in (*arguments, *options.values()) if isinstance(t, torch.Tensor)]
            whole = max(tensors, key=lambda t: t.nbytes)
            if whole.is_floating_point():
                calls.append((name, list(whole.shape), whole.nbytes))
            return real[name](*arguments, **options)

        return call

    for name in COLLECTIVES:
        for module in (dist, distributed_c10d):
            setattr(module, name, counting(name))
    try:
        yield calls
    finally:
        for name in COLLECTIVES:
            for module in (dist, distributed_c10d):
                setattr(module, name, real[name])


def trainer(folder):
    """Two steps of RLVR with a reference by the own trainer."""
    stage = rlvr(steps=2, lr=1e-4, kl_coef=0.1, minibatches=2)
    with counted() as calls:
        Recipe([stage]).run(llama(**TINY), TOKENIZER, folder / "run")
    return calls


def sharded(folder):
    """Forward and backward of a model in shards, products in bfloat16."""
    model = llama(**TINY)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    ids = torch.randint(len(TOKENIZER), (2, 7), generator=torch.Generator().manual_seed(dist.get_rank()))
    with counted() as calls:
        model(input_ids=ids, use_cache=False).logits.float().logsumexp(-1).mean().backward()
    return calls


def experts(folder):
    """Forward and backward of a layer whose tokens are spread evenly: numbers that leave this rank."""
    layer = ShardedExperts(*EXPERTS.values(), slots=0)
    x = torch.randn(16, EXPERTS["hidden"], requires_grad=True)
    indices = (torch.arange(32) % EXPERTS["experts"]).view(16, 2)
    with wire() as sent:
        layer(x, torch.full((16, 2), 0.5), indices).square().sum().backward()
    return sent


CHECKS = {"trainer": trainer, "sharded": sharded, "experts": experts}


def main(number, world, port, folder, names):
    """Entry of a process; `folder/{name}.{rank}` is what it counted."""
    become(number, world, port)
    with data_parallel():
        for name in names:
            Path(folder, f"{name}.{number}").write_text(json.dumps(CHECKS[name](Path(folder))))
