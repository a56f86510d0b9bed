"""The candidates of bench/train/trainer.py, each the shortest way to do the work with its library:

    python -m bench.train.candidates NAME WORK RESULT

runs one in this process, which is its own: its peak memory is that of the process. WORK is a `Work` as JSON, RESULT a
file to write. Lengths are fixed: the end token is one that no model ever writes, for both sides alike.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from bench.train.meter import Meter


@dataclass(frozen=True)
class Work:
    """What is to be done, the same for all candidates of a comparison."""

    model: str  # folder
    prompts: int = 8
    samples: int = 8  # completions of each prompt
    length: int = 128  # tokens of each completion
    rows: int = 8  # that go through the model at once in an update
    steps: int = 2  # after a first one that is not counted
    shots: int = 0  # solved examples before each prompt's question
    dtype: str = "float32"  # bfloat16: weights in float32, products in bfloat16 (of rollouts alone: all in bfloat16)
    threads: int = 2
    vocabulary: int = 0  # 0: the model as it is; else one of its shape with so many tokens, its weights random


def load(work: Work, meter: Meter, dtype: torch.dtype = torch.float32):
    """(model, tokenizer) whose end token is one that the model never writes."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(work.model)
    meter.before()
    if work.vocabulary:
        config = transformers.AutoConfig.from_pretrained(work.model, vocab_size=work.vocabulary)
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(work.model, dtype=dtype)
    end, token = list(tokenizer.added_tokens_decoder.items())[-1]  # an "unused" or exotic one
    tokenizer.eos_token, tokenizer.chat_template = token.content, None  # a template would name its own end of a turn
    model.config.eos_token_id = model.generation_config.eos_token_id = end
    meter.loaded(model)
    return model, tokenizer


def questions(count: int, shots: int = 0) -> list[str]:
    """Prompts of about the same length."""
    ask = "Question: What is {} times {}?\nThink step by step.\nAnswer:"
    before = "".join(f"{ask.format(i, i + 3)} {i} times {i + 3} is {i * (i + 3)}.\n\n" for i in range(11, 11 + shots))
    return [before + ask.format(13 + i, 47 - i) for i in range(count)]


def pairs(tokenizer, work: Work) -> list[dict[str, str]]:
    """One batch of prompts with completions of half to the whole of `length` tokens."""
    texts = questions(work.prompts * work.samples)
    rows = []
    for i, prompt in enumerate(texts):
        words = [f"{13 + i} times {47 - i} is {(13 + i) * (47 - i)}, since {j} and {i} are so." for j in range(99)]
        ids = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
        length = work.length - work.length * i // (2 * len(texts))
        rows.append({"prompt": prompt, "completion": tokenizer.decode(ids[: length - 1])})
    return rows


def token_count(tokenizer, rows: list[dict[str, str]]) -> int:
    """Tokens of all prompts and completions."""
    return sum(len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) + 1 for row in rows)


def reward(text: str) -> float:
    """Between 0 and 1, different for every completion: no group is left out."""
    return zlib.crc32(text.encode()) / 2**32


# warpup


class Enough(Exception):
    """The steps that are measured are done. Raised before the checkpoint is written, which is not compared."""


def train(work: Work, meter: Meter, stage, model, tokenizer, tokens: int) -> None:
    """Run a stage of warpup; tokens: that go through the model in a step."""
    from warpup.train import Recipe
    from warpup.train.model import heads

    for name in ("linear_logprob", "linear_policy_loss_of"):  # what takes the place of the output layer's forward pass
        setattr(heads, name, meter.clock.timed("head", getattr(heads, name)))

    def report(name, step, steps, numbers):
        if numbers.get("length", work.length) != work.length:
            raise RuntimeError(f"completions have {numbers['length']} tokens, not {work.length}")
        meter.step(numbers["seconds"], tokens, numbers.get("sampling_seconds", 0.0))
        if step > work.steps:
            raise Enough

    with tempfile.TemporaryDirectory() as out, contextlib.suppress(Enough):
        Recipe([stage], dtype=work.dtype).run(model, tokenizer, out, report=report)


def grpo_warpup(work: Work, meter: Meter) -> None:
    from warpup.train import RLVR

    model, tokenizer = load(work, meter)
    texts = questions(work.prompts, work.shots)
    longest = max(len(ids) for ids in tokenizer(texts)["input_ids"])
    stage = RLVR(
        data=[{"prompt": text, "answer": ""} for text in texts],
        reward=lambda completion, example: reward(completion),
        steps=work.steps + 2,
        prompts=work.prompts,
        samples=work.samples,
        max_new_tokens=work.length,
        max_tokens=work.rows * (longest + work.length),
        lr=1e-6,
    )
    train(work, meter, stage, model, tokenizer, work.prompts * work.samples * work.length)


def sft_warpup(work: Work, meter: Meter) -> None:
    from warpup.train import Warmup

    model, tokenizer = load(work, meter)
    rows = pairs(tokenizer, work)
    longest = max(len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) + 1 for row in rows)
    stage = Warmup(
        data=rows, steps=work.steps + 2, batch_size=len(rows), max_tokens=work.rows * longest, lr=1e-6, lr_warmup=0
    )
    train(work, meter, stage, model, tokenizer, token_count(tokenizer, rows))


def rollout_warpup(work: Work, meter: Meter) -> None:
    from warpup.train import rollout

    model, tokenizer = load(work, meter, getattr(torch, work.dtype))
    prompts = tokenizer(questions(work.prompts, work.shots))["input_ids"]
    generator = torch.Generator().manual_seed(0)
    ends = {"eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    for _ in range(work.steps + 1):
        began = time.perf_counter()
        rolls = rollout(
            model.eval(), prompts, copies=work.samples, max_new_tokens=work.length, generator=generator, **ends
        )
        sampled(work, meter, began, int(rolls.lengths.sum()))


def sampled(work: Work, meter: Meter, began: float, tokens: int) -> None:
    """Rollouts are done; none may have ended before its time."""
    seconds = time.perf_counter() - began
    if tokens != work.prompts * work.samples * work.length:
        raise RuntimeError(f"{tokens} tokens were sampled, not {work.prompts * work.samples * work.length}")
    meter.step(seconds, tokens, seconds)


# transformers and TRL


def rollout_generate(work: Work, meter: Meter) -> None:
    model, tokenizer = load(work, meter, getattr(torch, work.dtype))
    tokenizer.padding_side = "left"
    inputs = tokenizer(questions(work.prompts, work.shots), return_tensors="pt", padding=True)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": tokenizer.pad_token_id}
    for _ in range(work.steps + 1):
        began = time.perf_counter()
        out = model.eval().generate(**inputs, num_return_sequences=work.samples, max_new_tokens=work.length, **options)
        new = out[:, inputs["input_ids"].shape[1] :]
        sampled(work, meter, began, new.numel())


def trl_arguments(work: Work, out: str, rows: int) -> dict:
    """What GRPOConfig and SFTConfig share: a step of `rows` rows, `work.rows` at once, and nothing but the training."""
    return {
        "output_dir": out,
        "max_steps": work.steps + 1,
        "per_device_train_batch_size": work.rows,
        "gradient_accumulation_steps": rows // work.rows,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "bf16": work.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }


class Steps(transformers.TrainerCallback):
    """Hands each step of a trainer of transformers to the meter."""

    def __init__(self, meter: Meter, tokens: int):
        self.meter, self.tokens = meter, tokens

    def on_step_begin(self, *arguments, **named):
        self.began = time.perf_counter()

    def on_step_end(self, *arguments, **named):
        seconds = time.perf_counter() - self.began
        self.meter.step(seconds, self.tokens, self.meter.sampling_clock.seconds.pop("sampling", 0.0))


def grpo_trl(work: Work, meter: Meter, library: str = "trl") -> None:
    from datasets import Dataset
    from trl import GRPOConfig

    GRPOTrainer = importlib.import_module(library).GRPOTrainer
    model, tokenizer = load(work, meter)
    count = work.prompts * work.samples
    lengths = set()

    def rewards(completions, completion_ids, **columns):
        lengths.update(map(len, completion_ids))
        return [reward(text) for text in completions]

    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            **trl_arguments(work, out, count),
            num_generations=work.samples,
            max_completion_length=work.length,
            temperature=1.0,
            beta=0.0,
        )
        trainer = GRPOTrainer(
            model,
            rewards,
            config,
            Dataset.from_list([{"prompt": text} for text in questions(work.prompts, work.shots)]),
            processing_class=tokenizer,
            callbacks=[Steps(meter, count * work.length)],
        )
        trainer._generate_single_turn = meter.sampling_clock.timed("sampling", trainer._generate_single_turn)
        trainer.train()
    if lengths != {work.length}:
        raise RuntimeError(f"completions have {sorted(lengths)} tokens, not {work.length}")


def grpo_trl_import(work: Work, meter: Meter) -> None:
    grpo_trl(work, meter, "warpup.integrations.trl")


def sft_trl(work: Work, meter: Meter, library: str = "trl") -> None:
    from datasets import Dataset
    from trl import SFTConfig

    SFTTrainer = importlib.import_module(library).SFTTrainer
    model, tokenizer = load(work, meter)
    rows = pairs(tokenizer, work)
    with tempfile.TemporaryDirectory() as out:
        SFTTrainer(
            model,
            SFTConfig(**trl_arguments(work, out, len(rows)), max_length=None),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Steps(meter, token_count(tokenizer, rows))],
        ).train()


def sft_trl_import(work: Work, meter: Meter) -> None:
    sft_trl(work, meter, "warpup.integrations.trl")


CANDIDATES = {f.__name__: f for f in (
    grpo_warpup, grpo_trl, grpo_trl_import, sft_warpup, sft_trl, sft_trl_import, rollout_warpup, rollout_generate,
)}  # fmt: skip


def main() -> None:
    name, work, target = sys.argv[1:]
    work = Work(**json.loads(work))
    torch.set_num_threads(work.threads)
    transformers.utils.logging.disable_progress_bar()
    library = {"warpup": "warpup.train", "trl": "trl", "generate": "transformers"}[name.split("_")[1]]
    __import__(library)
    meter = Meter()
    CANDIDATES[name](work, meter)
    Path(target).write_text(json.dumps(meter.result()))


if __name__ == "__main__":
    main()
