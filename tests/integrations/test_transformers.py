"""Schedules through transformers: `generate` of a small model against a loop that edits logits by hand, beams, and the
continuous-batching protocol."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import LogitsProcessorList

from tests.support.tiny import TOKENIZER, llama
from warpup.integrations.transformers import (
    BudgetContinuousProcessor,
    ReflectionContinuousProcessor,
    ReflectionLogitsProcessor,
    attach,
)
from warpup.reflection import ReflectionSchedule, ReflectionTokens, ThinkingBudget

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENS = ReflectionTokens.from_tokenizer(TOKENIZER, ["wait", "back"])
SCHEDULE = ReflectionSchedule("triangle", 30.0, 8, tokens=TOKENS)
PROMPTS = [[8, 9, 10, 4], [11, 12], [9, 4, 5, 13, 8]]  # the last one ended its thinking


def padded(prompts):
    width, pad = max(map(len, prompts)), TOKENIZER.pad_token_id
    rows = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    return {"input_ids": rows, "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])}


def thinking(prompt, generated):
    ids = [i for i in [*prompt, *generated] if i in (4, 5)]
    return not ids or ids[-1] == 4


@torch.no_grad()
def by_hand(model, prompt, schedule, steps, beams=None):
    """Greedy decoding of one prompt, the schedule written out."""
    out = []
    for t in range(steps):
        logits = model(torch.tensor([prompt + out])).logits[0, -1].float()
        if thinking(prompt, out):
            logits[list(schedule.tokens.ids)] += schedule.delta(t)
        out.append(int(logits.argmax()))
        if out[-1] == TOKENIZER.eos_token_id:
            break
    return out


def generate(model, prompts, processor, **options):
    settings = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": TOKENIZER.pad_token_id, **options}
    out = model.generate(**padded(prompts), logits_processor=LogitsProcessorList([processor]), **settings)
    width = max(map(len, prompts))
    rows, eos = out[:, width:].tolist(), TOKENIZER.eos_token_id
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


def test_generate_is_the_loop():
    model = llama().eval()
    processor = ReflectionLogitsProcessor(SCHEDULE, record=True)
    got = generate(model, PROMPTS, processor)
    want = [by_hand(model, p, SCHEDULE, 20) for p in PROMPTS]
    assert got == want
    assert any(set(g) & set(TOKENS.ids) for g in got), "the schedule drew no reflection token"
    deltas = torch.stack(processor.deltas, 1)
    length = next((i for i, t in enumerate(want[0]) if t == 5), len(want[0]))
    assert deltas[0, :length].tolist() == pytest.approx([SCHEDULE.delta(t) for t in range(length)], abs=1e-4)
    assert (deltas[2] == 0).all() or 4 in want[2]


def test_a_processor_is_used_again():
    """Another batch, the same batch, and one that is longer by a token: each is a new generation."""
    model = llama().eval()
    processor = ReflectionLogitsProcessor(SCHEDULE)
    want = [by_hand(model, p, SCHEDULE, 20) for p in PROMPTS]
    longer = [p + g[:1] for p, g in zip(PROMPTS, want, strict=True)]
    assert generate(model, PROMPTS, processor, max_new_tokens=1) == [w[:1] for w in want]
    assert generate(model, PROMPTS, processor) == want
    assert generate(model, PROMPTS[:2], processor) == want[:2]
    other = [[7, *p] for p in longer]
    assert generate(model, other, processor) == [by_hand(model, p, SCHEDULE, 20) for p in other]


def test_the_next_turn_of_a_chat():
    """A prompt that begins with all that was generated before, the last token included: as ids it goes on from there,
    yet it is another request, whose tokens count from 0."""
    model, wave = llama().eval(), SCHEDULE.replace(amplitude=4.0, period=16, phase="any")
    processor = ReflectionLogitsProcessor(wave, record=True)
    for more in ([], [8, 9, 10], [8]):
        prompt = PROMPTS[0]
        for _ in range(3):
            out = generate(model, [prompt], processor, max_new_tokens=5, eos_token_id=None)[0]
            assert torch.cat(processor.deltas).tolist() == pytest.approx([0, 1, 2, 3, 4])
            prompt = [*prompt, *out, *more]


@pytest.mark.parametrize("speculation", ["assistant", "prompt lookup"])
def test_drafts(speculation):
    """An assistant runs the same processor, in a `generate` of its own inside of ours; drafts are rejected."""
    model, wave = llama().eval(), SCHEDULE.replace(phase="any")
    torch.manual_seed(3)
    assistant = llama().eval()
    with torch.no_grad():
        for p in assistant.parameters():
            p.add_(0.03 * torch.randn_like(p))
    options = {"assistant_model": assistant} if speculation == "assistant" else {"prompt_lookup_num_tokens": 3}
    processor = ReflectionLogitsProcessor(wave)
    for prompt in (PROMPTS[0], PROMPTS[2], [8, 9, 8, 9, 8]):
        assert generate(model, [prompt], processor, **options) == generate(model, [prompt], Stateless(wave))


def test_a_loop_of_ones_own():
    """There the ids are all that is known, so what does not go on by a token asks for `reset`."""
    processor = ReflectionLogitsProcessor(SCHEDULE)
    scores = torch.zeros(1, len(TOKENIZER))
    for ids in ([8, 4], [8, 4, 9]):
        processor(torch.tensor([ids]), scores)
    with pytest.raises(ValueError, match=r"ids of shape \(1, 5\) do not go on from \(1, 3\) .*: call reset\(\)"):
        processor(torch.tensor([[8, 4, 9, 9, 9]]), scores)
    processor.reset()
    processor(torch.tensor([[8, 4, 9, 9, 9]]), scores)
    assert processor.delta.item() == 0
    processor(torch.tensor([[8, 4, 9, 9, 9, 9]]), scores)
    assert processor.delta.item() == pytest.approx(SCHEDULE.delta(1))


def test_a_schedule_a_row():
    model = llama().eval()
    mine = [SCHEDULE, SCHEDULE.replace(amplitude=-30.0), SCHEDULE.replace(start_offset=2)]
    assert generate(model, PROMPTS, ReflectionLogitsProcessor(mine)) == [
        by_hand(model, p, s, 20) for p, s in zip(PROMPTS, mine, strict=True)
    ]
    with pytest.raises(ValueError, match="3 schedules were given for 2 rows"):
        generate(model, PROMPTS[:2], ReflectionLogitsProcessor(mine))


class Stateless(ReflectionLogitsProcessor):
    """Follows everything anew at each call."""

    def _follow(self, ids):
        prompt = self.prompt
        if self.seen is None:
            prompt = ids.shape[1]
        self.seen, self.prompt = ids, prompt
        batch = self._batch_of(len(ids), ids.device)
        none = torch.zeros(len(ids), dtype=torch.int64)
        batch.begin_padded(range(len(ids)), ids, none, none + prompt)
        return batch


def test_beams():
    """Rows change places between the calls."""
    model = llama().eval()
    tip = ReflectionSchedule("constant", -3.0, tokens=TOKENS, anchor="reflection", window=(0, 4))
    options = {"num_beams": 3, "max_new_tokens": 12}
    for schedule in (SCHEDULE.replace(amplitude=4.0), tip):
        want = generate(model, PROMPTS[:2], Stateless(schedule), **options)
        assert generate(model, PROMPTS[:2], ReflectionLogitsProcessor(schedule), **options) == want


BUDGET = ThinkingBudget.from_tokenizer(TOKENIZER, 6, message="back", warn_at=2, warning="wait wait")


@torch.no_grad()
def budget_by_hand(model, prompt, budget, steps):
    """Greedy decoding of one prompt; the warning and the closing written out. 4 begins the thinking, 5 ends it."""
    out, began = [], 0 if 4 in prompt and thinking(prompt, []) else None
    while len(out) < steps and (not out or out[-1] != TOKENIZER.eos_token_id):
        began = out.index(4) + 1 if began is None and 4 in out else began
        thinks, thought = began is not None and thinking(prompt, out), len(out) - (began or 0)
        if thinks and thought == budget.warn_at:
            out += budget.warning
        elif thinks and thought >= budget.tokens:
            out += budget.closing
        else:
            out.append(int(model(torch.tensor([prompt + out])).logits[0, -1].argmax()))
    return out[:steps]


def test_generate_under_a_budget():
    """Of prompts of several lengths in a batch; the next turn of a chat is another request, whose thinking counts from
    0."""
    model = llama().eval()
    prompts = [[8, 9, 10, 4], [11, 12, 4], [9, 4, 5, 13, 8]]  # the last one has ended its thinking
    processor = ReflectionLogitsProcessor(budget=BUDGET)
    for _ in range(3):
        want = [budget_by_hand(model, p, BUDGET, 12) for p in prompts]
        got = generate(model, prompts, processor, max_new_tokens=12)
        assert got == want
        assert any(BUDGET.closing == tuple(g[6:8]) for g in got)
        prompts = [[*p, *g, 4] for p, g in zip(prompts[:2], got, strict=False)] + [prompts[2]]


def test_a_prompt_of_embeddings_is_followed_from_its_first_token_on():
    model = llama().eval()
    ids = torch.tensor([[8, 9, 10]])
    budget = ThinkingBudget(3, think_end=BUDGET.think_end)
    said = [
        model.generate(
            **prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False,
            logits_processor=LogitsProcessorList([ReflectionLogitsProcessor(budget=budget)]),
        )[0, -8:].tolist()
        for prompt in ({"input_ids": ids}, {"inputs_embeds": model.get_input_embeddings()(ids)})
    ]  # fmt: skip
    assert said[0] == said[1]
    assert said[0][3] == budget.think_end[0]


def test_a_forced_token_has_log_prob_0():
    model = llama().eval()
    processor = ReflectionLogitsProcessor(SCHEDULE, budget=[BUDGET.replace(tokens=4), None])
    out = model.generate(
        **padded([[8, 4], [9, 4]]), logits_processor=LogitsProcessorList([processor]), max_new_tokens=8,
        do_sample=True, temperature=0.7, top_k=0, pad_token_id=0, eos_token_id=None, output_scores=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    said = out.sequences[:, 2:].tolist()
    logp = torch.stack(out.scores, 1).log_softmax(-1).gather(2, out.sequences[:, 2:, None]).squeeze(2)
    ended = said[0].index(5) if 5 in said[0][:4] else 4
    if ended == 4:
        assert (logp[0, 4:6] == 0).all()
        assert tuple(said[0][4:6]) == BUDGET.closing
    assert processor.forced[1] == -1
    assert (logp[1] < 0).all()


@pytest.mark.parametrize("speculation", ["assistant", "prompt lookup", "beams"])
def test_a_budget_under_drafts_and_beams(speculation):
    model = llama().eval()
    options = {
        "assistant": {"assistant_model": llama(seed=1).eval()}, "prompt lookup": {"prompt_lookup_num_tokens": 3},
        "beams": {"num_beams": 3},
    }[speculation]  # fmt: skip
    processor = ReflectionLogitsProcessor(budget=BUDGET)
    for prompt in ([8, 9, 10, 4], [8, 9, 8, 9, 4]):
        (got,) = generate(model, [prompt], processor, max_new_tokens=12, **options)
        if speculation == "beams":
            ended = got.index(5) if 5 in got else len(got)
            assert ended <= 7
            assert ended <= 2 or tuple(got[2:4]) == BUDGET.warning
        else:
            assert got == budget_by_hand(model, prompt, BUDGET, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither a schedule nor a budget"),
        ({"budget": BUDGET.replace(tokens=60, probe_every=2, probe_below=0.1)}, "probe_every: a probe is a forward"),
        ({"budget": [BUDGET, BUDGET]}, "2 budgets were given for 1 rows"),
        ({"schedule": SCHEDULE, "budget": BUDGET.replace(think_end=(9,))}, "share their markers"),
        ({"budget": BUDGET.replace(message=(len(TOKENIZER),))}, "message: expected token ids below"),
    ],
)
def test_wrong_budgets(options, message):
    with pytest.raises(ValueError, match=message):
        ReflectionLogitsProcessor(**options)(torch.tensor([[8, 4]]), torch.zeros(1, len(TOKENIZER)))


def test_scores_are_left_alone():
    processor = ReflectionLogitsProcessor(SCHEDULE)
    ids, scores = torch.tensor([[8, 4]]), torch.zeros(1, len(TOKENIZER))
    processor(ids, scores)
    out = processor(torch.tensor([[8, 4, 9]]), scores)
    assert scores.abs().sum() == 0
    assert out.nonzero()[:, 1].tolist() == list(TOKENS.ids)
    assert out.max().item() == pytest.approx(SCHEDULE.delta(1))
    inplace = ReflectionLogitsProcessor(ReflectionSchedule("constant", 30.0, tokens=TOKENS), inplace=True)
    assert inplace(ids, scores) is scores
    assert scores.max() == 30


# ---- continuous batching --------------------------------------------------------------------------------------------


def request(name, prompt, generated=(), **kwargs):
    state = SimpleNamespace(
        request_id=name, initial_tokens=list(prompt), generated_tokens=list(generated), logit_processor_kwargs=kwargs,
        _true_initial_tokens=0,
    )  # fmt: skip
    return SimpleNamespace(state=state)


def test_continuous_batching_protocol():
    """Requests that join, leave, are preempted (their output becomes part of the prompt) and bring their own wave."""
    processor = ReflectionContinuousProcessor(SCHEDULE, slots=2)
    storage = torch.empty(1, 8, dtype=torch.int32)
    processor.fill_defaults(storage[0])
    scores = torch.zeros(3, len(TOKENIZER))
    assert torch.equal(processor(scores, storage[0]), scores)

    def deltas(*requests):
        return processor.prepare_tensor_args(list(requests)).view(torch.float32).tolist()

    own = SCHEDULE.replace(amplitude=6.0)
    a, b = request("a", [8, 4]), request("b", [9], reflection=own.to_json())
    assert deltas(a, b) == [0.0, 0.0]
    a.state.generated_tokens += [7]
    b.state.generated_tokens += [7]
    assert deltas(b, a) == pytest.approx([own.delta(1), SCHEDULE.delta(1)])
    c = request("c", [4])  # no slot is left: b, which is not in this batch, gives its own
    a.state.generated_tokens += [7]
    assert deltas(a, c) == pytest.approx([SCHEDULE.delta(2), 0.0])
    b.state._true_initial_tokens, b.state.initial_tokens = 1, [9, 7]
    b.state.generated_tokens = [7, 7]
    assert deltas(a, b) == pytest.approx([SCHEDULE.delta(2), own.delta(3)])
    a.state.generated_tokens += [5]
    assert deltas(a) == [0.0]
    again = request("b", [4])  # the name and the prompt's length of one before
    again.state.generated_tokens += [7]
    assert deltas(again) == pytest.approx([SCHEDULE.delta(1)])

    out = processor(scores, torch.tensor([1.5, 0.0, -2.0]).view(torch.int32))
    assert out[:, list(TOKENS.ids)].tolist() == [[1.5] * 2, [0.0] * 2, [-2.0] * 2]
    assert out.abs().sum() == 7


def test_attach():
    batching = pytest.importorskip("transformers.generation.continuous_batching.cb_logits_processors")
    listed = batching.ContinuousBatchingLogitsProcessorList(LogitsProcessorList())
    manager = SimpleNamespace(
        logit_processor=listed, continuous_batching_config=SimpleNamespace(use_async_batching=False)
    )
    attach(manager, ReflectionContinuousProcessor(SCHEDULE))
    assert listed.tensors_required == 1
    assert listed.do_processing
    listed.check_kwargs({"reflection": SCHEDULE.to_json()})
    storage = torch.zeros(1, 4, dtype=torch.int32)
    future = request("a", [4], [7])
    future.has_new_token = True
    listed.prepare_tensor_args([future], storage)
    scores = listed(torch.zeros(1, 1), torch.zeros(1, len(TOKENIZER)), storage)
    assert scores.max().item() == pytest.approx(SCHEDULE.delta(1))
    manager.continuous_batching_config.use_async_batching = True
    with pytest.raises(ValueError, match="use_async_batching=False"):
        attach(manager, ReflectionContinuousProcessor(SCHEDULE))


THINKING = [[8, 9, 10, 4], [11, 12, 4], [9, 4, 5, 13, 8]]
OWN = BUDGET.replace(tokens=9, warn_at=4)


@pytest.mark.parametrize(
    ("processor", "prompts", "own", "by_hand"),
    [
        (lambda: ReflectionContinuousProcessor(SCHEDULE), PROMPTS, {}, lambda m, p, n: by_hand(m, p, SCHEDULE, 20)),
        (
            lambda: BudgetContinuousProcessor(BUDGET), THINKING, {"thinking_budget": OWN.to_json()},
            lambda m, p, n: budget_by_hand(m, p, OWN if n == 1 else BUDGET, 20),
        ),
    ],
    ids=["schedule", "budget"],
)  # fmt: skip
def test_continuous_batching_generates_the_same(processor, prompts, own, by_hand):
    """transformers' own manager on the small model, against the loop by hand; the second request brings its own."""
    configuration = transformers.GenerationConfig(
        max_new_tokens=20, do_sample=False, eos_token_id=TOKENIZER.eos_token_id, pad_token_id=TOKENIZER.pad_token_id
    )
    if not hasattr(transformers, "ContinuousBatchingConfig"):
        pytest.skip("an older protocol of continuous batching")
    small = transformers.ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)  # else as large as memory allows
    model = llama().eval()
    manager = model.init_continuous_batching(configuration, small)
    attach(manager, processor())
    manager.start()
    try:
        names = [manager.add_request(p, **(own if n == 1 else {})) for n, p in enumerate(prompts)]
        results = {}
        for _ in range(200):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                results[result.request_id] = result.generated_tokens
            if len(results) == len(names):
                break
    finally:
        manager.stop(block=True)
    assert [results[name] for name in names] == [by_hand(model, p, n) for n, p in enumerate(prompts)]
