"""Embed operators in a training loop of your own: GRPO on a toy task, in seconds, on a CPU.

    python examples/own_loop.py --steps 60

A small recurrent model writes 12 letters and is rewarded for every vowel. Three operators do the work of the loss:
`token_logprob` (log-probs without a log_softmax of the logits), `group_advantage` (each answer against the others to
the same prompt) and `policy_loss` (the clipped objective and its metrics). Everything else is plain torch.
"""

import argparse

import torch
from torch import Tensor, nn

import warpup

LETTERS = "abcdefghijklmnopqrstuvwxyz"
START = len(LETTERS)  # stands before the first letter


class Writer(nn.Module):
    def __init__(self, width: int = 64):
        super().__init__()
        self.embedding = nn.Embedding(len(LETTERS) + 1, width)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, len(LETTERS))

    def forward(self, letters: Tensor) -> Tensor:
        """(B, T) letters -> (B, T, V) logits of the letter after each."""
        return self.head(self.recurrent(self.embedding(letters))[0])

    @torch.no_grad()
    def write(self, count: int, length: int) -> Tensor:
        text = torch.full((count, 1), START)
        for _ in range(length):
            probabilities = self(text)[:, -1].softmax(-1)
            text = torch.cat([text, torch.multinomial(probabilities, 1)], 1)
        return text


def reward(text: str) -> float:
    return sum(letter in "aeiou" for letter in text) / len(text)


def main() -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    model = Writer()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    groups, samples = 4, 16  # there is one prompt here; a group is the answers to one prompt

    for step in range(given.steps):
        tokens = model.write(groups * samples, length=12)
        texts = ["".join(LETTERS[i] for i in row) for row in tokens[:, 1:].tolist()]
        rewards = torch.tensor([reward(text) for text in texts])
        advantages = warpup.group_advantage(rewards, samples)  # rows 0..15 are a group, 16..31 the next, ...

        context, targets = tokens[:, :-1], tokens[:, 1:]
        with torch.no_grad():
            old_logp = warpup.token_logprob(model(context), targets)
        for _ in range(2):  # two steps on the same samples: the second one is off-policy, so the ratio is clipped
            logp = warpup.token_logprob(model(context), targets)
            mask = torch.ones_like(targets, dtype=torch.bool)  # every letter counts; padding would be False
            loss, metrics = warpup.policy_loss(logp, old_logp, advantages, mask, kind="dapo")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if step % 20 == 0 or step == given.steps - 1:
            ratio = float(metrics["ratio_max"])
            print(f"step {step:3}  reward {rewards.mean():.2f}  largest ratio {ratio:.2f}  {texts[0]}")
    return float(rewards.mean())


if __name__ == "__main__":
    main()
