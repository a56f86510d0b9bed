"""Settings that several parts share. Nothing here imports torch, so that a config is checked before that is loaded."""

from dataclasses import dataclass
from typing import Literal

from .errors import TrainError

Precision = Literal["auto", "float32", "bfloat16"]
Weights = Literal["float32", "bfloat16"]
CorrectionMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
EngineName = Literal["own", "transformers", "vllm", "sglang"]
MaskMeasure = Literal["ratio", "k2", "k3", "binary_kl", "binary_tv"]
MaskOver = Literal["token", "mean", "sum", "max"]
Baseline = Literal["mean", "leave_one_out", "length_weighted", "runner_up", "none"]
Scale = Literal["std", "batch_std", "leave_one_out_std", "none"]
Advantage = Literal[
    "grpo", "grpo_verl", "dr_grpo", "rloo", "opo", "pass_at_k", "max_rl", "gdpo", "reinforce_pp",
    "reinforce_pp_baseline", "gae", "segment", "tree", "optimal_token_baseline", "hierarchical_grpo",
]  # fmt: skip
Divergence = Literal["forward", "reverse", "jeffreys", "jsd", "symmetric_ce", "binary", "logit_swap"]
PreferenceLoss = Literal[
    "dpo", "robust", "hinge", "ipo", "exo", "nca", "bco", "sppo", "apo_zero", "apo_down", "discopop", "simpo", "cpo",
    "orpo",
]  # fmt: skip
RateSchedule = Literal["constant", "cosine", "linear", "wsd"]


@dataclass(frozen=True)
class LoRA:
    """Settings of low-rank adapters; with `r` 0 all weights are trained."""

    r: int = 0
    """Rank of the adapters; 0: none, all weights are trained."""
    alpha: float = 32.0
    """The adapters' product is multiplied by alpha / r."""
    targets: tuple[str, ...] = ()
    """Names of the layers that get one, such as q_proj; none: every linear layer but the output layer."""
    dropout: float = 0.0
    """Share of an adapter's inputs that is dropped in warm-up; RLVR never drops."""
    merge: bool = False
    """Write the finished model with the adapters merged into its weights, in float32, and not beside them."""

    def check(self) -> None:
        """Raise TrainError on settings that cannot be."""
        if self.r < 0:
            raise TrainError(f"lora.r: expected at least 0, got {self.r}")
        if self.r == 0 and self != LoRA():
            raise TrainError("lora: settings are given, but lora.r is 0 and there are no adapters; set lora.r")
        if not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise TrainError(f"lora: expected alpha > 0 and 0 <= dropout < 1, got {self.alpha} and {self.dropout}")


def depth_of(samples: int, branches: int) -> int:
    """Edges from the prompt to a completion, with advantage "tree": samples = branches ** depth. ValueError if there is
    no such number."""
    depth, leaves = 0, 1
    while leaves < samples and branches > 1:
        depth, leaves = depth + 1, leaves * branches
    if leaves != samples or depth < 1:
        raise ValueError(f"branches: samples, {samples}, is not a power of {branches}")
    return depth


def decay_steps(steps: int, share: float) -> int:
    """Steps of the decay, with lr_schedule "wsd": that share of them, at least one."""
    return max(1, round(share * steps))
