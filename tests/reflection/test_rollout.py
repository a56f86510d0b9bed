"""What a trainer does with a schedule: sample under it, store (delta, T) a token, and replay both in the loss."""

import pytest
import torch

import warpup
from tests.support.tiny import TOKENIZER, llama
from warpup.reflection import ReflectionBatch, ReflectionSchedule, ReflectionTokens

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENS = ReflectionTokens.from_tokenizer(TOKENIZER, ["wait", "back"])
PROMPTS = [[8, 9, 10, 4], [11, 12], [9, 4, 5, 13, 8], [4]]
EOS, STEPS = TOKENIZER.eos_token_id, 24


@torch.no_grad()
def rollout(model, schedule, temperature):
    """Completions and, a token each, the log-prob before the filter, delta and T. Rows that ended leave the batch, so
    a row's place changes and its slot does not."""
    batch = ReflectionBatch(len(PROMPTS), schedule)
    batch.begin(range(len(PROMPTS)), PROMPTS)
    for slot in range(len(PROMPTS)):
        batch.set_sampling([slot], temperature, top_p=0.95, seed=slot)
    tokens = [[] for _ in PROMPTS]
    stored = [[] for _ in PROMPTS]
    alive = torch.arange(len(PROMPTS))
    for _ in range(STEPS):
        rows = [model(torch.tensor([PROMPTS[s] + tokens[s]])).logits[0, -1] for s in alive]
        step = batch.sample(torch.stack(rows), alive)
        batch.update(step.token, alive)
        logp = step.logp + step.kept.log()
        for s, *values in zip(alive.tolist(), step.token, logp, step.delta, step.temperature, strict=True):
            token, *numbers = (v.item() for v in values)
            tokens[s].append(token)
            stored[s].append(numbers)
        alive = alive[step.token != EOS]
        if len(alive) == 0:
            break
    return tokens, stored


def test_the_ratio_of_a_fresh_sample_is_one():
    model = llama().eval()
    schedule = ReflectionSchedule("triangle", 6.0, 12, tokens=TOKENS)
    tokens, stored = rollout(model, schedule, 0.8)
    mask = torch.zeros(len(TOKENIZER), dtype=torch.bool)
    mask[list(TOKENS.ids)] = True
    worst = 0.0
    for prompt, completion, numbers in zip(PROMPTS, tokens, stored, strict=True):
        logits = model(torch.tensor([prompt + completion])).logits[:, len(prompt) - 1 : -1]
        targets = torch.tensor([completion])
        old, delta, temperature = torch.tensor(numbers).T.unsqueeze(1).contiguous()
        replayed = warpup.replay_logprob(logits, targets, temperature=temperature, delta=delta, token_set=mask)
        torch.testing.assert_close((replayed - old).exp(), torch.ones_like(old), rtol=0, atol=2e-5)
        plain = warpup.token_logprob(logits, targets, temperature=temperature)
        worst = max(worst, (plain - old).exp().sub(1).abs().max().item())
    assert worst > 0.5, "without the replay the ratio is off by this much"


def test_the_draws_do_not_depend_on_who_else_is_there():
    """One request alone gives what it gave in the batch."""
    model = llama().eval()
    schedule = ReflectionSchedule("cosine", 4.0, 10, tokens=TOKENS)
    tokens, _ = rollout(model, schedule, 1.0)
    batch = ReflectionBatch(1, schedule)
    batch.begin([0], [PROMPTS[2]])
    batch.set_sampling([0], 1.0, top_p=0.95, seed=2)
    alone = []
    while len(alone) < len(tokens[2]):
        logits = model(torch.tensor([PROMPTS[2] + alone])).logits[0, -1:].detach()
        step = batch.sample(logits)
        batch.update(step.token)
        alone.append(step.token.item())
    assert alone == tokens[2]
