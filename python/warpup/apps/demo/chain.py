"""One chain of the demo: a fresh model, warm-up, RLVR, and a measurement after each."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import transformers

from warpup.data import REFLECTION_WORDS, verify, word_tokenizer
from warpup.train import checkpoint
from warpup.train.evaluation import evaluate
from warpup.train.files import read_table, write_text
from warpup.train.log import Report
from warpup.train.model.load_model import use_experts
from warpup.train.recipe import Recipe
from warpup.train.run import HeldOut
from warpup.train.run_config import seed_everything
from warpup.train.stages.rlvr import RLVR
from warpup.train.stages.warmup import Warmup

from .puzzles import puzzle_sets
from .settings import ARMS, Size


def fresh_model(size: Size, tokenizer, seed: int):
    """Untrained Llama of the demo's size, about 0.6 M parameters; with experts, a Qwen2-MoE whose four active experts,
    the shared one among them, have a quarter of the Llama's width each, as DeepSeekMoE cuts them."""
    seed_everything(seed)
    width = 8 * size.hidden // 3
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": size.hidden,
        "intermediate_size": width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "max_position_embeddings": 1024,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": False,
    }
    if not size.experts:
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
    config = transformers.Qwen2MoeConfig(
        **shape,
        num_experts=size.experts,
        num_experts_per_tok=3,
        moe_intermediate_size=width // 4,
        shared_expert_intermediate_size=width // 4,
        router_aux_loss_coef=0.01,
    )
    return use_experts(transformers.Qwen2MoeForCausalLM(config))


def run_chain(chain: str, seed: int, size: Size, out: Path, report: Report) -> dict[str, Any]:
    """Train one chain in `out` and measure it after each stage; a finished chain is read back."""
    done = out / "results.json"
    if done.exists():
        return read_table(done, *ARMS[chain], "seconds", "parameters")
    began = time.perf_counter()

    def say(stage, *numbers):
        report(f"seed {seed} {chain} {stage}", *numbers)

    # Puzzles and an untrained model, both by the seed alone.
    sets, tokenizer = puzzle_sets(size, seed), word_tokenizer()
    model = fresh_model(size, tokenizer, seed)

    # Both chains are the same recipe; they differ in what the first stage imitates, and for how long.
    steps = size.warm_steps if chain == "warm" else size.base_steps
    recipe = Recipe(
        [
            Warmup(sets[chain], steps=steps, batch_size=size.batch, lr=size.warm_lr),
            RLVR(
                sets["rl"],
                verify,
                steps=size.rl_steps,
                prompts=size.prompts,
                samples=size.samples,
                max_new_tokens=size.max_new_tokens,
                temperature=size.temperature,
                lr=size.rl_lr,
                limit=None,
            ),
        ]
    )
    limits = {"max_new_tokens": size.max_new_tokens, "reflection_words": REFLECTION_WORDS}
    held_out = HeldOut(sets["held_out"][: size.curve], verify, points=size.points, **limits)
    recipe.run(model, tokenizer, out, seed=seed, report=say, held_out=held_out)

    # An arm is the model after one of the stages, so its weights are read back from there.
    results: dict[str, Any] = {"chain": chain, "seed": seed}
    for arm, stage in zip(ARMS[chain], recipe.names(), strict=True):
        newest = checkpoint.latest(out / stage)
        assert newest is not None  # the recipe has run
        checkpoint.load_weights(model, newest)
        say(f"measure {arm}", 0, 1, {})
        found = evaluate(
            model,
            tokenizer,
            sets["held_out"],
            verify,
            temperature=size.temperature,
            seed=seed,
            traces=size.held_out,
            **limits,
        )
        say(f"measure {arm}", 1, 1, {"accuracy": found.avg})
        results[arm] = asdict(found)
    results["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    results["seconds"] = time.perf_counter() - began
    write_text(done, json.dumps(results))
    return results
