"""Self-correction in two turns: a Knights & Knaves puzzle, and a second try where the first one was wrong.

    python examples/second_try.py

A small Llama is warmed up on worked chains of thought, then plays episodes: it answers, hears whether it was right, and
may answer once more, for half the reward. What it hears is read and never learned from. Printed is the share of
held-out puzzles that are solved at once, and after the second try, before and after RLVR.
"""

import argparse

import torch

from warpup.apps.demo.chain import fresh_model
from warpup.apps.demo.puzzles import puzzle_sets
from warpup.apps.demo.settings import QUICK
from warpup.data import verify, word_tokenizer
from warpup.train import RLVR, ProgressBar, Recipe, Turn, Warmup, load_model
from warpup.train.model.tokens import end_tokens
from warpup.train.sampling.episodes import play


class SecondTry:
    """One episode: a puzzle, and at most two answers to it."""

    def reset(self, example):
        self.example, self.tries = example, 0
        return example["prompt"]

    def step(self, completion):
        self.tries += 1
        right = bool(verify(completion, self.example).correct)
        worth = 1.0 if self.tries == 1 else 0.5
        return Turn(f"wait . {self.example['prompt']}", worth * right, right, float(right))


def measure(model, tokenizer, examples):
    """Shares of the examples that are solved in the first turn, and in one of both."""
    episodes = play(
        model.eval(), tokenizer, SecondTry, examples, turns=2, ends=end_tokens(model, tokenizer), copies=1, limit=1024,
        max_new_tokens=160, temperature=0.7, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    first = (episodes.rewards[:, 0] > 0).float().mean().item()
    return first, sum(episodes.correct) / len(examples)


def main() -> tuple[float, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--warm-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--held-out", type=int, default=96)
    parser.add_argument("--out", default="runs/second_try")
    given = parser.parse_args()
    sets, tokenizer = puzzle_sets(QUICK, seed=0), word_tokenizer()
    model, held_out = fresh_model(QUICK, tokenizer, seed=0), sets["held_out"][: given.held_out]

    warmup = Warmup(sets["warm"], steps=given.warm_steps, batch_size=8, lr=2e-3)
    rlvr = RLVR(
        sets["rl"], environment=SecondTry, credit="turn", steps=given.steps, prompts=8, samples=8, max_new_tokens=160,
        temperature=0.7, lr=1e-4,
    )  # fmt: skip
    with ProgressBar() as bar:
        Recipe([warmup]).run(model, tokenizer, given.out, report=bar)
        before = measure(model, tokenizer, held_out)
        Recipe([warmup, rlvr]).run(fresh_model(QUICK, tokenizer, seed=0), tokenizer, given.out, report=bar)
    after = measure(load_model(f"{given.out}/model")[0], tokenizer, held_out)
    for name, (first, both) in (("warm-up", before), ("warm-up + RLVR", after)):
        print(f"{name:15} solved at once {100 * first:5.1f} %, after a second try {100 * both:5.1f} %")
    return before[1], after[1]


if __name__ == "__main__":
    main()
