"""Options of `warpup demo`, and how big a demo is."""

from dataclasses import dataclass
from typing import Literal

ARMS = {"base": ("base", "base + RLVR"), "warm": ("warm-up", "warm-up + RLVR")}  # chain -> before and after RLVR


@dataclass
class DemoArguments:
    """Train four arms on Knights & Knaves puzzles, print their table, write report.html."""

    out: str = ""
    """Folder of the results; what is done there already is reused. Not given: runs/demo, of a pretrained model
    runs/transfer."""
    model: Literal["dense", "moe", "smollm2", "gemma3-270m"] = "dense"
    """dense: a Llama; moe: fine-grained routed experts and a shared one, as many active parameters. smollm2 and
    gemma3-270m are pretrained: then this is `warpup transfer`, which takes much longer."""
    quick: bool = False
    """Smaller puzzles and fewer steps, for a first rough look in about half a minute."""
    seeds: int = 1
    """Repeat with so many seeds and show mean and spread."""
    jobs: int = 0
    """Chains trained side by side, each on one CPU thread; 0: as many as there are cores."""


@dataclass(frozen=True)
class Size:
    """How big a demo is. Chosen on two CPU cores; see the fields for what was compared."""

    people: int = 2
    depth: int = 3  # levels of a statement; at 2 there are too few puzzles, and warm-up learns them by heart
    kinds: tuple[str, ...] = ("leaf", "not", "and", "or", "implies", "iff")
    slips: float = 0.15  # chance that the teacher misjudges a check; its wrong traces are kept, as in the paper
    words: int = 24  # longest prompt
    pool: int = 12_000  # puzzles drawn, of which the short ones are kept
    held_out: int = 256
    puzzles: int = 100  # RLVR's training puzzles
    names: int = 10  # renamings of each, in turn
    chains: int = 20_000  # warm-up examples: training puzzles under other names
    base_steps: int = 150
    warm_steps: int = 1600
    rl_steps: int = 140  # the training reward still rises at 70
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    experts: int = 0  # routed ones of a layer, 3 of them active; 0: a dense model
    batch: int = 8  # learns faster per token than 16 and 32
    warm_lr: float = 2e-3
    rl_lr: float = 1e-4  # at 2e-4 the reward does not rise; 5e-4 collapses the chains
    temperature: float = 0.7  # of the rollouts and of the measurement
    prompts: int = 8
    samples: int = 16
    max_new_tokens: int = 192
    points: int = 5  # of each stage's curves
    curve: int = 128  # held-out puzzles behind each point of the curves


FULL = Size()
QUICK = Size(
    words=20, pool=6000, held_out=96, warm_steps=300, base_steps=60, rl_steps=12, samples=8, points=2, curve=48
)
