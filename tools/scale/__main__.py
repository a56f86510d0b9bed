"""One RLVR step in bytes and FLOPs, and what its phases take on 8 to 512 GPUs: writes the tables of docs/scale.md.

    python -m tools.scale                        write them
    python -m tools.scale --config FOLDER        print them for a model of yours (a folder with its config.json)

It counts, it measures nothing. `sizes.py` has what it counts from: a `Model` read off a config, a `Batch`, a `Machine`
by its datasheet. `phases.py` has a function for each phase, which says what one GPU has to do: FLOPs of its products,
bytes through its memory, over NVLink and over the network. The one rule of time: within a phase all four go on at once,
so the slowest sets it; phases follow each other. tests/scale holds the counts against models that run, and the
exchanges against two and four processes.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import astuple
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig, Qwen3Config, Qwen3MoeConfig

from tools.scale.phases import overlapped, step
from tools.scale.sizes import FP32, H100, H200, Batch, Machine, Model

PAGE = Path(__file__).resolve().parents[2] / "docs/scale.md"
BEGIN, END = "<!-- tables -->\n", "<!-- end of tables -->"
GPUS = (8, 16, 32, 64, 128, 256, 512)
MODELS = {  # the published configs of Qwen3-8B and Qwen3-235B-A22B
    "8B": (
        Qwen3Config(
            hidden_size=4096, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
            intermediate_size=12288, vocab_size=151936, tie_word_embeddings=False,
        ),
        H100,
    ),
    "235B-A22B": (
        Qwen3MoeConfig(
            hidden_size=4096, num_hidden_layers=94, num_attention_heads=64, num_key_value_heads=4, head_dim=128,
            moe_intermediate_size=1536, num_experts=128, num_experts_per_tok=8, vocab_size=151936,
            tie_word_embeddings=False,
        ),
        H200,
    ),
}  # fmt: skip


def digits(x: float) -> str:
    """Three digits, with a unit of a thousand's power."""
    power = min(6, max(0, math.floor(math.log10(x) / 3))) if x >= 1 else 0
    x /= 1000**power
    return f"{x:.{max(0, 2 - math.floor(math.log10(max(x, 0.1))))}f}" + (" " + " kMGTPE"[power]).rstrip()


def table(header: str, rows: list[list[str]]) -> str:
    names = header.split(", ")
    lines = ["| " + " | ".join(cells) + " |" for cells in (names, ["---"] * len(names), *rows)]
    return "\n".join(lines) + "\n"


def sizes(models: dict[str, Model], batch: Batch) -> str:
    rows = [
        [name, digits(m.parameters), digits(m.used + m.vocab * m.hidden), digits(m.flops(1, batch.context, 1)),
         digits(m.cached) + "B", digits(FP32 * 4 * m.parameters) + "B"]
        for name, m in models.items()
    ]  # fmt: skip
    return table("model, weights, that a token meets, FLOPs of a token, its keys and values, training state", rows)


def work(model: Model, batch: Batch, gpus: int, machine: Machine) -> str:
    found = step(model, batch, gpus, machine)
    rows = [[name, *(digits(x) if x else "" for x in astuple(done)[:4])] for name, done in found.items()]
    return table("phase, FLOPs, bytes of memory, bytes by NVLink, bytes by network", rows)


def seconds(model: Model, batch: Batch, machine: Machine) -> str:
    rows, phases = [], ("rollout", "old log-probs", "reference", "update", "optimizer", "transfer")
    for gpus in GPUS:
        found = step(model, batch, gpus, machine)
        if found is None:
            rows.append([str(gpus), "does not fit", *[""] * (len(phases) + 1)])
            continue
        each = [done.seconds(machine) for done in found.values()]
        cells = [f"{digits(t)} {done.limit(machine)}" for t, done in zip(each, found.values(), strict=True)]
        both = overlapped(model, batch, gpus, machine)
        beside = f"{digits(both[0])}, {both[1]} sample" if both else ""
        rows.append([str(gpus), *cells, f"{digits(sum(each))}, {each[0] / sum(each):.0%} rollout", beside])
    return table(", ".join(["GPUs", *phases, "step", "sampling beside it"]), rows)


def tables(configs: dict[str, tuple[PretrainedConfig, Machine]], batch: Batch) -> str:
    models = {name: Model.of(config) for name, (config, _) in configs.items()}
    parts = [sizes(models, batch)]
    for name, (_, machine) in configs.items():
        model = models[name]
        fitting = [gpus for gpus in GPUS if step(model, batch, gpus, machine)]
        if not fitting:
            parts.append(f"{name} does not fit on {GPUS[-1]} {machine.name}.\n")
            continue
        parts.append(f"What one of {fitting[0]} {machine.name} does in a step of {name}:\n")
        parts.append(work(model, batch, fitting[0], machine))
        parts.append(f"Seconds of {name} on {machine.name}, and what sets them:\n")
        parts.append(seconds(model, batch, machine))
    return "\n".join(parts)


def page(text: str) -> str:
    """The page with the tables of now between its two marks."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + tables(MODELS, Batch()) + "\n" + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", help="a folder with a model's config.json")
    folder = parser.parse_args().config
    if folder:
        if not (Path(folder) / "config.json").is_file():
            parser.error(f"--config: {folder} has no config.json")
        config = AutoConfig.from_pretrained(folder)
        try:
            Model.of(config)
        except ValueError as error:
            parser.error(f"--config: {error}")
        print(tables({f"{folder} ({machine.name})": (config, machine) for machine in (H100, H200)}, Batch()))
    else:
        PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
