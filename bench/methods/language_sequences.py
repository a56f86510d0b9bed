"""Sequences that are made for one question: can a tiny model combine two facts, find its way through a maze, follow
many sums at once, know what it does not know, look back to where a token stood before?"""

from __future__ import annotations

import functools
import itertools
import random

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM

from bench.methods.language_models import Size, fall, llama, rise, train
from bench.methods.runner import Arm
from bench.methods.stages import ALIKE, run
from warpup import ReflectionBatch, continuous_tokens, token_logprob, weighted_nll
from warpup.data import maze, trace_labels, two_hop_facts, uniform_rate_mask, word_tokenizer
from warpup.metrics import cheat_confidence, cheat_interval, prefix_matching
from warpup.train import Warmup, evaluate

EOS = {"bos_token_id": 1, "eos_token_id": 2}  # of `word_tokenizer`, whose pad is 0 and whose unk is 3


def picks(rows: int, batch: int, seed: int):
    """Batch i: numbers of rows, drawn at random."""
    return lambda i: torch.randint(rows, (batch,), generator=torch.Generator().manual_seed(1_000_003 * seed + i))


# ---- Two hops -------------------------------------------------------------------------------------------------------


def last_word(completion: str, example: dict) -> float:
    """1 if a completion ends with the answer."""
    return float(completion.split()[-1:] == [example["answer"]])


def two_hops(seed: int, size: Size, cot: bool) -> dict[str, float]:
    """Facts, and what follows from two of them: "accuracy" on such pairs of facts as were combined with others in
    training, "ood" on facts that were only ever seen alone."""
    world = two_hop_facts(40, 10, degree=5, ratio=2.0, ood=0.3, cot=cot, seed=seed)
    words = [f"e{i}" for i in range(40)] + [f"r{i}" for i in range(10)]
    tokenizer, steps = word_tokenizer(extra=words), 3 * size.steps
    stage = Warmup(world["train"], steps=steps, batch_size=4 * size.batch, lr=3e-3, lr_warmup=steps // 16, **ALIKE)
    model = run([stage], llama(size, seed, len(tokenizer), **EOS), tokenizer, seed)
    options = {"samples": 0, "max_new_tokens": 4}
    right = {split: evaluate(model, tokenizer, world[split][:200], last_word, **options) for split in ("id", "ood")}
    return {"accuracy": right["id"].reward, "ood": right["ood"].reward}


# ---- Mazes ----------------------------------------------------------------------------------------------------------

SIDE = 3  # cells


@functools.cache
def mazes(seed: int, size: Size):
    """A tokenizer, mazes to train on, and others with another tree, order or pair of ends."""
    cells = [f"{r},{c}" for r in range(SIDE) for c in range(SIDE)]
    tokenizer = word_tokenizer(extra=[":", *cells, *(f"{a}-{b}" for a, b in itertools.permutations(cells, 2))])
    found = [maze(SIDE, seed=100_000 * seed + i) for i in range(25 * size.steps + 200)]
    held_out = found[:200]
    known = {example["prompt"] for example in held_out}
    return tokenizer, [example for example in found[200:] if example["prompt"] not in known], held_out


def next_token(seed: int, size: Size) -> dict[str, float]:
    """The way through a maze, cell by cell."""
    tokenizer, rows, held_out = mazes(seed, size)
    steps = 4 * size.steps
    stage = Warmup(rows, steps=steps, batch_size=2 * size.batch, lr=3e-3, lr_warmup=steps // 16, **ALIKE)
    model = run([stage], llama(size, seed, len(tokenizer), **EOS), tokenizer, seed)

    def same(completion: str, example: dict) -> float:
        return float(completion.split() == example["answer"].split())

    return {"accuracy": evaluate(model, tokenizer, held_out, same, samples=0, max_new_tokens=SIDE**2 + 1).reward}


def encoded(tokenizer, rows: list[dict]) -> Tensor:
    """(n, T) tokens of mazes and ways, which end tokens fill up."""
    ids = tokenizer([f"{row['prompt']} {row['completion']}" for row in rows])["input_ids"]
    width = len(tokenizer(rows[0]["prompt"])["input_ids"]) + SIDE**2
    return torch.tensor([[*each, *[2] * (width - len(each))] for each in ids])


def multi_step(seed: int, size: Size) -> dict[str, float]:
    """MLM-U: any tokens of the way from any others, by a model that looks both ways."""
    tokenizer, rows, held_out = mazes(seed, size)
    tokens, mask_id, way = encoded(tokenizer, rows), tokenizer.unk_token_id, SIDE**2
    given = np.arange(tokens.shape[1]) < tokens.shape[1] - way  # the prompt is always seen
    torch.manual_seed(seed)
    shape = {
        "hidden_size": size.width, "intermediate_size": 4 * size.width, "num_hidden_layers": size.layers,
        "num_attention_heads": 4, "vocab_size": len(tokenizer), "max_position_embeddings": tokens.shape[1],
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    model, steps, rng = BertForMaskedLM(BertConfig(**shape)), 4 * size.steps, np.random.default_rng(seed)

    def loss(model, some: Tensor) -> Tensor:
        wanted = tokens[some]
        seen = torch.from_numpy(uniform_rate_mask(np.broadcast_to(given, wanted.shape), rng))
        logits = model(input_ids=wanted.where(seen, mask_id)).logits
        return weighted_nll(token_logprob(logits, wanted), ~seen, normalizer="sequence")

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)  # at 3e-3 it learns nothing
    train(model, picks(len(tokens), 2 * size.batch, seed), range(steps), fall(steps), loss=loss, optimizer=optimizer)
    wanted = encoded(tokenizer, held_out)
    found = wanted.where(torch.from_numpy(given), mask_id)
    with torch.no_grad():
        for _ in range(way):  # the surest of the places that are left, one after the other
            chance, token = model(input_ids=found).logits.softmax(-1).max(-1)
            place = chance.where(found == mask_id, -1.0).argmax(-1, keepdim=True)
            found = found.scatter(1, place, token.gather(1, place))
    return {"accuracy": float((found == wanted).all(1).float().mean())}


# ---- Continuous chain of thought: CoT2 ------------------------------------------------------------------------------

DIGITS, LARGEST = 4, 9
ZERO = 3 + LARGEST + DIGITS * LARGEST  # the token of sum 0; before it <pad>, <eos>, "=", the digits, negative sums
SUMS = ZERO + DIGITS * LARGEST + 1  # tokens in all


def traces(digits: tuple[int, ...]) -> list[list[int]]:
    """Of all signs the sums so far, the best of them first, each followed by the answer: the least sum that is not
    negative."""
    found = [
        [*itertools.accumulate(s * d for s, d in zip(signs, digits, strict=True))]
        for signs in itertools.product((1, -1), repeat=DIGITS)
    ]
    best = min((trace for trace in found if trace[-1] >= 0), key=lambda trace: trace[-1])
    found.sort(key=lambda trace: trace is not best)
    return [[ZERO + total for total in [*trace, best[-1]]] for trace in found]


def subset_sums(seed: int, size: Size, kind: str) -> dict[str, float]:
    """Signs for four digits so that the sum is small: the answer at once, behind the sums of the best signs ("one"), or
    behind all sums at each place as one continuous token ("all")."""
    rng = random.Random(seed)
    problems = rng.sample([*itertools.product(range(1, LARGEST + 1), repeat=DIGITS)], 2200)
    numbers = torch.tensor([[*(2 + d for d in digits), 2] for digits in problems])
    wanted = torch.zeros(len(problems), 1 if kind == "none" else DIGITS + 1, SUMS)
    for row, digits in enumerate(problems):
        known = traces(digits)
        known = {"none": [known[0][-1:]], "one": known[:1], "all": known}[kind]
        labels = trace_labels(known)
        for place, (ids, logp) in enumerate(zip(labels["ids"], labels["logprobs"], strict=True)):
            wanted[row, place, ids] = torch.tensor(logp).exp()
    model, steps, held_out = llama(size, seed, SUMS), 3 * size.steps, slice(0, 200)
    table = model.get_input_embeddings()

    def loss(model, some: Tensor) -> Tensor:
        labels = wanted[some + 200]
        inputs = torch.cat([table(numbers[some + 200]), labels[:, :-1] @ table.weight], 1)
        logits = model(inputs_embeds=inputs, use_cache=False).logits[:, DIGITS:]
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(0, 1))

    train(model, picks(2000, 4 * size.batch, seed), range(steps), fall(steps), loss=loss)

    # One draw is a token, the likeliest; sixteen draws stand for all sums.
    slots, draws = torch.arange(200), 16 if kind == "all" else 1
    batch = ReflectionBatch(200)
    batch.begin(range(200), numbers[held_out].tolist())
    for slot in range(200):
        batch.set_sampling([slot], float(kind == "all"), seed=slot)
    with torch.no_grad():
        inputs = table(numbers[held_out])
        for _ in range(wanted.shape[1] - 1):
            logits = model(inputs_embeds=inputs, use_cache=False).logits[:, -1]
            mixed, drawn = continuous_tokens(logits, batch.tables, slots, table.weight, draws)
            batch.update(drawn.token[:, 0])
            inputs = torch.cat([inputs, mixed[:, None]], 1)
        answer = model(inputs_embeds=inputs, use_cache=False).logits[:, -1].argmax(-1)
    return {"accuracy": float((answer == wanted[held_out, -1].argmax(-1)).float().mean())}


# ---- Pairs of answers: what a model does not know -------------------------------------------------------------------

ANSWERS, SUBJECTS = 8, 16  # tokens: the kind, 0 or 1, then subjects, then answers
FIRST = 2 + SUBJECTS
QUESTIONS, OFTEN = SUBJECTS**4, 64  # of four subjects; those that come again and again


def questions(kind: int, numbers: Tensor) -> Tensor:
    """(n, 5): the tokens of questions by number; kind 0 has one answer each, kind 1 is open."""
    subjects = [numbers // SUBJECTS**place % SUBJECTS + 2 for place in range(4)]
    return torch.stack([torch.full_like(numbers, kind), *subjects], 1)


@functools.cache
def pairs(seed: int, size: Size):
    """A model of questions with two independent answers each, and the one right answer to each question of kind 0. Of
    these a few come in half of the cases and are learned, the others about once in a training or never. To a question
    of kind 1 each answer is as likely, each time."""
    rng = torch.Generator().manual_seed(seed)
    right, often = torch.randint(ANSWERS, (QUESTIONS,), generator=rng), torch.randperm(QUESTIONS, generator=rng)[:OFTEN]

    def batch(step: int) -> Tensor:
        draw = torch.Generator().manual_seed(1_000_003 * seed + step)
        known, rare, free = torch.randint(QUESTIONS, (3, 2 * size.batch), generator=draw)
        fixed = torch.cat([often[known % OFTEN], rare])
        said = torch.cat([right[fixed, None].expand(-1, 2), torch.randint(ANSWERS, (len(free), 2), generator=draw)])
        return torch.cat([torch.cat([questions(0, fixed), questions(1, free)]), FIRST + said], 1)

    def loss(model, ids: Tensor) -> Tensor:
        logp = token_logprob(model(input_ids=ids, use_cache=False).logits[:, 4:6], ids[:, 5:].contiguous())
        return weighted_nll(logp, torch.ones_like(logp))

    steps, model = 4 * size.steps, llama(size, seed, FIRST + ANSWERS)
    train(model, batch, range(steps), fall(steps), loss=loss)
    return model, right, often


def asked(seed: int, size: Size, kind: str) -> dict[str, float]:
    """Of questions that came "often", that are "rare", or "open": how sure the model is that it knows, and how often
    the true chance of an answer is in its interval of 90 % ("covered")."""
    model, right, often = pairs(seed, size)
    numbers = (
        often if kind == "often" else torch.randperm(QUESTIONS, generator=torch.Generator().manual_seed(seed))[:256]
    )
    question, answers = questions(int(kind == "open"), numbers), torch.arange(FIRST, FIRST + ANSWERS)
    again = torch.cat([question.repeat_interleave(ANSWERS, 0), answers.repeat(len(question))[:, None]], 1)
    with torch.no_grad():
        p = model(input_ids=question).logits[:, -1].softmax(-1)[:, answers]
        p_again = model(input_ids=again).logits[:, -1].softmax(-1)[:, answers].view(-1, ANSWERS, ANSWERS)
    p, p_again = p.double().numpy(), p_again.diagonal(dim1=1, dim2=2).double().numpy()
    true = np.full_like(p, 1 / ANSWERS) if kind == "open" else np.eye(ANSWERS)[right[numbers].numpy()]
    low, high = cheat_interval(p, p_again, error=0.1)
    confidence = (p * np.minimum(cheat_confidence(p, p_again), 1)).sum(1) / p.sum(1)
    inside = (low - 0.02 <= true) & (true <= high + 0.02)  # within two points: a softmax is never 0
    return {"confidence": float(confidence.mean()), "covered": float(inside.mean())}


# ---- Induction heads ------------------------------------------------------------------------------------------------


def repeated(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(count, 48) random tokens that begin anew after 12 to 24 of them, another number in each row, and at which places
    the next token is known: no fixed distance tells it."""
    draw = torch.Generator().manual_seed(seed)
    ids, period = torch.randint(32, (count, 24), generator=draw), torch.randint(12, 25, (count, 1), generator=draw)
    place = torch.arange(48)
    return ids.gather(1, place % period), place[:-1] >= period


def prefix(seed: int, size: Size, layers: int) -> dict[str, float | list]:
    """How far the best head looks to what followed the last time, over training, and how often the next token is told
    right where it has been there before."""
    steps, curve = 4 * size.steps, []
    model = llama(size, seed, 32, num_hidden_layers=layers, attn_implementation="eager")
    unseen, known = repeated(16, 1_000_003 * seed + steps)

    @torch.no_grad()
    def measure(step: int) -> None:
        if step % (steps // 8) == 0:
            heads = torch.stack(
                model(input_ids=unseen, output_attentions=True).attentions, 1
            )  # (B, layers, heads, ...)
            scores = [prefix_matching(a.numpy(), ids.tolist()) for a, ids in zip(heads, unseen, strict=True)]
            curve.append(float(np.mean(scores, 0).max()))

    def loss(model, batch: tuple[Tensor, Tensor]) -> Tensor:
        ids, learned = batch
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        return weighted_nll(token_logprob(logits, ids[:, 1:].contiguous()), learned)

    def batch(i: int) -> tuple[Tensor, Tensor]:
        return repeated(2 * size.batch, 1_000_003 * seed + i)

    measure(0)
    train(model, batch, range(steps), rise(steps), loss=loss, after=measure)
    with torch.no_grad():
        told = model(input_ids=unseen).logits[:, :-1].argmax(-1)
    return {"prefix": curve[-1], "accuracy": float((told == unseen[:, 1:])[known].float().mean()), "curve": curve}


ARMS = {
    "two hops, answer alone": Arm(lambda *a: two_hops(*a, cot=False), by="ood"),
    "two hops, chain of thought": Arm(lambda *a: two_hops(*a, cot=True), by="ood", against="two hops, answer alone"),
    "maze, next token": Arm(next_token, by="accuracy"),
    "maze, MLM-U": Arm(multi_step, by="accuracy", against="maze, next token"),
    "sums, answer alone": Arm(lambda *a: subset_sums(*a, "none"), by="accuracy"),
    "sums, one chain": Arm(lambda *a: subset_sums(*a, "one"), by="accuracy", against="sums, answer alone"),
    "sums, CoT2": Arm(lambda *a: subset_sums(*a, "all"), by="accuracy", against="sums, one chain"),
    "pairs, often": Arm(lambda *a: asked(*a, "often"), by="confidence"),
    "pairs, rare": Arm(lambda *a: asked(*a, "rare"), by="confidence", against="pairs, often"),
    "pairs, open": Arm(lambda *a: asked(*a, "open"), by="confidence", against="pairs, often"),
    "prefix, one layer": Arm(lambda *a: prefix(*a, layers=1), by="prefix"),
    "prefix, two layers": Arm(lambda *a: prefix(*a, layers=2), by="prefix", against="prefix, one layer"),
}
