"""Sparse collectives beside the dense ones on gloo: `python bench/sparse_collectives.py --processes 4 --share 0.125`.

The experts of a layer are sharded over the processes. Dense: all of them to every process, and their gradients summed,
as FSDP does. Sparse: the share of them with the highest load, whoever owns them. Each is checked, then they take turns,
and a round lasts until the last process is done. Bytes are counted where they leave a process; the wire is loopback.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
import warnings

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from bench.harness.timing import Samples
from tests.distributed.checks import wire
from warpup.distributed import Gathering, even_shards, materialize, sparse_reduce_scatter


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--share", type=float, default=1 / 8, help="of the experts that every process gets")
    parser.add_argument("--experts", type=int, default=64, help="a multiple of the processes")
    parser.add_argument("--elements", type=int, default=3 * 1408 * 2048 // 16, help="parameters of an expert")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    context, failed = multiprocessing.get_context("spawn"), 0
    for world in arguments.processes:
        with tempfile.TemporaryDirectory() as folder:
            processes = [context.Process(target=run, args=(r, world, folder, arguments)) for r in range(world)]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
                failed |= process.exitcode
    return int(failed != 0)


def run(rank: int, world: int, folder: str, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # newer torch has other names for the dense ones
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    dtype, experts = getattr(torch, arguments.dtype), arguments.experts
    whole = torch.randn(experts, arguments.elements, generator=torch.Generator().manual_seed(0)).to(dtype)
    owner, hot = even_shards(experts, world), round(arguments.share * experts)
    load = torch.randperm(experts, generator=torch.Generator().manual_seed(1)) + 1
    placement = materialize(load, owner, [0] * world, slots=hot, top=hot)
    shard, layout = whole[placement.shard(rank)].clone(), placement.layout(rank)
    full, part, some = torch.empty_like(whole), torch.empty_like(shard), whole.new_empty(len(layout), whole.shape[1])

    def dense_gather():
        dist.all_gather_into_tensor(full, shard)
        return full

    def dense_reduce():
        dist.reduce_scatter_tensor(part, whole)
        return part

    grads = whole[layout]
    summed = shard * placement.held[placement.shard(rank)].sum(1, keepdim=True).to(dtype)
    cases = {
        "all-gather": (lambda: Gathering(shard, placement, out=some).wait(), grads, dense_gather, whole),
        "reduce-scatter": (lambda: sparse_reduce_scatter(grads, placement), summed, dense_reduce, shard * world),
    }
    table = Table(title=f"{world} processes, {experts} experts of {whole[0].nbytes / 2**20:.1f} MiB {arguments.dtype}, "
                        f"{hot} of them on all; load {os.getloadavg()[0]:.1f}")  # fmt: skip
    for column in ("", "sparse ms", "dense ms", "time ratio", "share", "bytes ratio"):
        table.add_column(column, justify="right")
    for name, (sparse, want, dense, dense_want) in cases.items():
        with wire() as sent:
            torch.testing.assert_close(sparse(), want)
        torch.testing.assert_close(dense(), dense_want)
        moved = torch.tensor(float(sum(sent)))
        dist.all_reduce(moved)
        ratio = moved.item() / ((world - 1) * whole.numel())
        seconds = {sparse: [], dense: []}
        for _ in range(arguments.rounds):
            for function, samples in seconds.items():
                dist.barrier()
                began = time.perf_counter()
                function()
                took = torch.tensor(time.perf_counter() - began, dtype=torch.float64)
                dist.all_reduce(took, dist.ReduceOp.MAX)
                samples.append(took.item())
        ours, theirs = Samples(seconds[sparse]), Samples(seconds[dense])
        table.add_row(
            name,
            f"{ours.median * 1e3:.1f} ± {ours.iqr * 1e3:.1f}",
            f"{theirs.median * 1e3:.1f} ± {theirs.iqr * 1e3:.1f}",
            f"{ours.median / theirs.median:.3f}",
            f"{hot / experts:.3f}",
            f"{ratio:.4f}",
        )
    if rank == 0:
        Console(width=120).print(table)
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
