"""What only a GPU can show of the ops: they work on the caller's stream, in a CUDA graph, and in so many launches.

python -m bench.gpu.gpu_checks [--json FILE]        (--device cpu runs the calls alone, to test this script)
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

import warpup
from bench.harness.measure import differentiable
from tests.support.cases import CASES, Case

SIZE = "threads"  # of the case table: more than one block
SLEEP = 50_000_000  # cycles, some 30 ms: long after the host has queued all that follows


def on(inputs: dict, device: str) -> dict:
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


def stream(case: Case, variant: str, device: str) -> None:
    """On a side stream, behind a long wait, with inputs that are copied in behind that wait: a kernel on another stream
    would read what is not there yet."""
    inputs = on(case.make(SIZE, variant=variant), device)
    late = {k: torch.zeros_like(v) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    side = torch.cuda.Stream() if device == "cuda" else None
    if side:
        torch.cuda.synchronize()
    with torch.cuda.stream(side) if side else nullcontext():
        if side:
            torch.cuda._sleep(SLEEP)
        copy_into(late, inputs)
        got = case.run(late)
    if side:
        side.synchronize()
    case.compare(got, inputs)


def graph(case: Case, variant: str, device: str) -> None:
    """Captured once, replayed on other inputs. Synchronisation with the host would end the capture with an error."""
    first, second = (on(case.make(SIZE, seed=seed, variant=variant), device) for seed in (0, 1))
    static = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in first.items()}
    direction = "forward+backward" if case.differentiable else "forward"
    candidate = differentiable(case.call, static, case.differentiable, direction)
    arguments = candidate.arguments()  # share the memory of `static`
    if device == "cuda":
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is set up on a first call must be over before the capture
            candidate.run(*arguments)
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            got = candidate.run(*arguments)
        copy_into(static, second)
        captured.replay()
    else:
        copy_into(static, second)
        got = candidate.run(*arguments)
    case.compare(tuple(g.detach() for g in got), second)


def copy_into(targets: dict, sources: dict) -> None:
    for name, value in sources.items():
        if isinstance(value, torch.Tensor):
            targets[name].copy_(value)


def kernels(call, device: str) -> list[str]:
    """The names of the kernels (copies and fills too) that a call launches, set-up of a first call apart."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    call()
    with torch.profiler.profile(activities=kinds) as profile, torch.no_grad():
        call()
        if device == "cuda":
            torch.cuda.synchronize()
    return [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]


def launches(case: Case, variant: str, device: str) -> list[str]:
    inputs = on(case.make(SIZE, variant=variant), device)
    return kernels(lambda: case.call(**inputs), device)


def single_launches(device: str) -> dict[str, list[str]]:
    """What the design promises to do in one launch."""
    rewards, offsets = torch.randn(4096, device=device), torch.arange(0, 4097, 8, device=device)
    logits, targets = torch.randn(64, 4096, device=device), torch.randint(4096, (64,), device=device)
    calls = {
        "group_advantage, fixed size": lambda: warpup.group_advantage(rewards, 8),
        "group_advantage, offsets": lambda: warpup.group_advantage(rewards, offsets=offsets),
        "token_logprob": lambda: warpup.token_logprob(logits, targets),
    }
    return {name: kernels(call, device) for name, call in calls.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for case in CASES:
        for variant in case.variants:
            row = {"op": case.op, "variant": variant}
            for check in (stream, graph, launches):
                try:
                    found = check(case, variant, arguments.device)
                    row[check.__name__] = "ok" if found is None else found
                except Exception as error:
                    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
                    row[check.__name__] = f"FAILED: {type(error).__name__}: {text[:150]}"
            rows.append(row)
            if arguments.json:  # after each, so that a run that is cut short leaves them
                arguments.json.write_text(json.dumps({"ops": rows}, indent=1))
            count = len(row["launches"]) if isinstance(row["launches"], list) else "?"
            print(f"{case.op:20} {variant:14} stream {row['stream']}; graph {row['graph']}; {count} kernels forward")
    single = single_launches(arguments.device)
    wanted = int(arguments.device == "cuda")
    for name, found in single.items():
        print(f"{name}: {len(found)} launches{'' if len(found) == wanted else f', FAILED: {wanted} expected: {found}'}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"ops": rows, "launches": single}, indent=1))
    return int(any("FAILED" in str(row) for row in rows) or any(len(found) != wanted for found in single.values()))


if __name__ == "__main__":
    sys.exit(main())
