"""TRL's GRPO with warpup's output layer: one changed import.

    pip install trl && python examples/trl_grpo.py --steps 2

The model is a tiny random one, so that this runs anywhere in seconds; put a checkpoint and a dataset of yours in its
place. Sampling, rewards, losses, distribution and logging stay TRL's (tests/integrations holds whole runs together).
"""

import argparse
import tempfile

from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig

from warpup.data import example, knights_and_knaves, word_tokenizer
from warpup.integrations.trl import GRPOTrainer  # in place of: from trl import GRPOTrainer


def different_words(completions, **_):
    """A reward function of TRL's kind: one number for each completion."""
    return [len(set(text.split())) / 8 for text in completions]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2)
    given = parser.parse_args()
    tokenizer = word_tokenizer()
    tokens = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "eos", "bos")}
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, **tokens))
    prompts = [{"prompt": example(puzzle)["prompt"]} for puzzle in knights_and_knaves(32)]

    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            folder, loss_type="dapo", max_steps=given.steps, per_device_train_batch_size=8, num_generations=4,
            max_completion_length=16, learning_rate=1e-3, logging_steps=1, report_to=[], save_strategy="no",
            use_cpu=True, bf16=False, gradient_checkpointing=False,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model,
            reward_funcs=different_words,
            args=arguments,
            train_dataset=Dataset.from_list(prompts),
            processing_class=tokenizer,
        )
        trainer.train()
    return trainer.state.log_history


if __name__ == "__main__":
    main()
