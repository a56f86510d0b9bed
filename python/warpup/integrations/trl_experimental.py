"""Trainers of `trl.experimental` on warpup's operators: `from warpup.integrations.trl_experimental import GKDTrainer`.

GKDTrainer and AsyncGRPOTrainer; as in `trl.py`, all but the output layer stays TRL's. TRL's GKDTrainer makes all logits
of student and teacher, so this one saves the most memory. Importing this module is importing `trl.experimental`, which
warns that it may change in any release (TRL_EXPERIMENTAL_SILENCE=1 silences that).

What was run: both in whole runs beside TRL's own trainers, on a CPU, with the same log and weights. TRL's
AsyncGRPOTrainer wants a GPU, FlashAttention 3 and a vLLM server, none of which was there: its rollouts were given, its
attention was torch's and its weights went nowhere (`tests/integrations/test_trl_experimental.py`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from warpup.integrations.trl import DistillationTrainer, add_head, refuse_zero3, with_names

try:
    from accelerate.utils import is_peft_model
    from trl.experimental.async_grpo import async_grpo_trainer
    from trl.experimental.gkd import gkd_trainer
    from trl.models.utils import _ForwardRedirection
except ImportError as error:
    raise ImportError(f"warpup.integrations.trl_experimental needs trl 1.16: {error}") from None


class AsyncGRPOTrainer(async_grpo_trainer.AsyncGRPOTrainer):
    """TRL's AsyncGRPOTrainer with log-probs and entropies from `linear_logprob`."""

    __init__ = with_names(async_grpo_trainer.AsyncGRPOTrainer.__init__, add_fused_lm_head=add_head)


class GKDTrainer(gkd_trainer.GKDTrainer):
    """TRL's GKDTrainer with the divergence from `linear_divergence`, on hidden states.

    What asks for the model's outputs beside the loss (`compute_metrics`) gets TRL's own loss, with all logits. Raises
    ValueError for adapters that work outside of the model's layers (prompt tuning and its kin).
    """

    _compute_loss = DistillationTrainer._compute_loss

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        refuse_zero3()
        model: Any = self.model
        configs = model.peft_config.values() if is_peft_model(model) else ()
        if any(config.is_prompt_learning for config in configs):
            raise ValueError(
                "GKDTrainer: prompt tuning acts outside of the model's layers; use LoRA or TRL's own trainer"
            )
        self._forward_redirection = _ForwardRedirection()
        self.temperature = 1.0  # the divergence's; the setting is that of sampling, which `generation_config` has

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs:
            return super().compute_loss(model, inputs, True, num_items_in_batch)
        # As DistillationTrainer's batches are: all after the first token is completion, and the labels say what counts.
        ids, mask, learned = inputs["input_ids"], inputs["attention_mask"], inputs["labels"] != -100
        batch = {
            "prompt_ids": ids[:, :1], "prompt_mask": mask[:, :1],
            "completion_ids": ids[:, 1:], "completion_mask": mask[:, 1:], "tool_mask": learned[:, 1:],
        }  # fmt: skip
        student = self.accelerator.unwrap_model(model)
        return self._forward_redirection(model, student, self._compute_loss, student, batch, num_items_in_batch)[0]

    def _get_last_hidden_state(self, model, input_ids: Tensor, attention_mask: Tensor, _kept: int) -> Tensor:
        causal = model.get_base_model() if is_peft_model(model) else model
        states = causal.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return states.last_hidden_state[:, :-1]
