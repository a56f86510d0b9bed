"""Schedules and the state of requests, against closed forms and against a search through all tokens."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import warpup
from warpup.data import word_tokenizer
from warpup.reflection import ReflectionBatch, ReflectionSchedule, ReflectionTokens, presets
from warpup.reflection.apply_schedule import PHASES, reflection_state_update_

OPEN, CLOSE, CODE, END = (3,), (4, 3, 4), (5, 5), (6,)  # markers: one token, several, overlapping themselves
TOKENS = ReflectionTokens((1, 2), OPEN, CLOSE, CODE, END)
VOCAB = 9
WAVES = [("triangle", {}), ("cosine", {}), ("constant", {}), ("table", {"table": [(0, 1.0), (5, -2.0), (30, 0.5)]})]


def wave_of(wave, **options):
    """A schedule of this wave, with those of the options that have an effect on it."""
    options = {"amplitude": 3.0, "period": 12, "tokens": TOKENS, **dict(WAVES).get(wave, {}), **options}
    idle = {"period", "shift"} if wave == "constant" else {"amplitude"} if wave == "table" else set()
    idle |= {"period"} if wave == "table" and not options.get("shift") else set()
    return ReflectionSchedule(wave, **{name: value for name, value in options.items() if name not in idle})


def ended(tokens, marker):
    """Positions behind a marker, found from left to right without overlap but with itself."""
    n = len(marker)
    return [i for i in range(n, len(tokens) + 1) if n and tuple(tokens[i - n : i]) == marker]


def search(prompt, generated, schedule):
    """Phase, thought start, last reflection and their number, from all tokens at once."""
    tokens, p = [*prompt, *generated], len(prompt)
    events = {m: set(ended(tokens, marker)) for m, marker in zip("tecx", schedule.tokens.markers, strict=True)}
    phase, code, start, last, count = 0, False, 0, -1, 0
    for i, token in enumerate(tokens, 1):
        acting = PHASES[3 if code else phase or 1]
        wanted = (schedule.phase,) if isinstance(schedule.phase, str) else schedule.phase
        if i > p and token in schedule.tokens.ids and {acting, "any"} & set(wanted):
            last, count = i - p, count + 1
        if i in events["t"]:
            phase, start = 1, max(i - p, 0)
        phase = 2 if i in events["e"] else phase
        code = (code or i in events["c"]) and i not in events["x"]
    return (3 if code else phase or 1), start, last, count


def brute_delta(prompt, generated, schedule):
    phase, start, last, _ = search(prompt, generated, schedule)
    wanted = (schedule.phase,) if isinstance(schedule.phase, str) else schedule.phase
    if not {PHASES[phase], "any"} & set(wanted):
        return 0.0
    anchor = {"generation": 0, "think": start, "reflection": last if last >= 0 else start}[schedule.anchor]
    return schedule.replace(start_offset=0 if anchor else schedule.start_offset).delta(len(generated) - anchor)


token_lists = st.lists(st.integers(0, VOCAB - 1), max_size=30)
schedules = st.builds(
    lambda wave, **options: wave_of(wave, **options),
    st.sampled_from([name for name, _ in WAVES]),
    amplitude=st.floats(-9, 9),
    period=st.sampled_from([3, 7.5, 40]),
    anchor=st.sampled_from(["generation", "think", "reflection"]),
    phase=st.sampled_from(["think", "any", ("answer", "code")]),
    window=st.sampled_from([None, (2, 9), (3, None)]),
    shift=st.floats(-1, 1),
    start_offset=st.integers(0, 20),
)


# ---- the wave -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wave", "options"), WAVES)
@pytest.mark.parametrize("period", [100, 1200, 7.25])
def test_wave_is_the_closed_form(twin, wave, options, period):
    """Over several periods, one request a position, to 1e-6 of the amplitude (float32 holds no more)."""
    length = 3000
    schedule = wave_of(wave, amplitude=5.0, period=period, shift=0.3, start_offset=7, **options)
    batch = ReflectionBatch(length, schedule, device=twin.device)
    batch.tables.state[:, 0, 0] = torch.arange(length)  # so many generated tokens, and nothing in them
    logits = torch.zeros(length, VOCAB, device=twin.device)
    delta = batch.apply_(logits)
    np.testing.assert_allclose(delta.double().cpu(), schedule.delta(np.arange(length)), atol=1e-6 * 5)
    assert torch.equal(logits[:, 1], delta)
    assert torch.equal(logits[:, 2], delta)
    assert (logits[:, [0, *range(3, VOCAB)]] == 0).all()


def test_triangle_turns_where_the_paper_says():
    schedule = wave_of("triangle", amplitude=5.0, period=1200)
    assert [schedule.delta(t) for t in (0, 300, 600, 900, 1200, 150)] == [0, 5, 0, -5, 0, 2.5]
    t = np.arange(5000)
    paper = 5 * np.abs(4 * ((t - 300) % 1200) / 1200 - 2) - 5
    np.testing.assert_allclose(schedule.delta(t), paper, atol=1e-12)


def test_no_delta_changes_no_bit(twin):
    """0 at the wave's zeros, outside of the window and of the phase, and for a slot of none."""
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0)).to(twin.device)
    logits[:, 1] = torch.tensor([-0.0, math.nan, math.inf, -math.inf])
    for schedule, slots in [
        (wave_of("triangle"), [0, 1, 2, 3]),
        (wave_of("constant", amplitude=0.0), [0, 1, 2, 3]),
        (wave_of("constant", window=(1, None)), [0, 1, 2, 3]),
        (wave_of("constant", phase="answer"), [0, 1, 2, 3]),
        (wave_of("constant"), [-1, -1, -1, -1]),
    ]:
        batch = ReflectionBatch(4, schedule, device=twin.device)
        got = logits.clone()
        assert batch.apply_(got, torch.tensor(slots, device=twin.device)).tolist() == [0.0] * 4
        assert torch.equal(got.view(torch.int32), logits.view(torch.int32))


def test_unit_nat(twin):
    batch = ReflectionBatch(2, wave_of("constant", amplitude=2.0, unit="nat"), device=twin.device)
    logits = torch.zeros(2, VOCAB, device=twin.device)
    temperature = torch.tensor([0.5, 2.0], device=twin.device)
    assert batch.apply_(logits, temperature=temperature).tolist() == [1.0, 4.0]
    assert batch.apply_(logits, temperature=0.25).tolist() == [0.5, 0.5]


def test_a_ban_is_minus_infinity(twin):
    batch = ReflectionBatch(2, presets.no_wait(TOKENS), device=twin.device)
    logits = torch.randn(2, VOCAB, device=twin.device)
    batch.apply_(logits)
    assert logits.eq(-math.inf).nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]


# ---- the state ------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(token_lists, token_lists), min_size=1, max_size=4), schedules)
def test_follows_like_a_search(twin, requests, schedule):
    """Token by token: delta, phase, thought start, last reflection; then the same from all tokens at once."""
    n = len(requests)
    batch = ReflectionBatch(n + 1, schedule, ring=3, device=twin.device)
    prompts, generated = [list(p) for p, _ in requests], [list(g) for _, g in requests]
    batch.begin(range(n), prompts)
    for t in range(max(map(len, generated)) + 1):
        logits = torch.zeros(n, VOCAB, device=twin.device)
        delta = batch.apply_(logits)
        at = batch.progress()
        so_far = [g[:t] for g in generated]
        for r, (p, g) in enumerate(zip(prompts, so_far, strict=True)):
            phase, start, last, count = search(p, g, schedule)
            state = [int(x[r]) for x in at]
            assert state == [phase, len(g), start, last, count]
            assert delta[r].item() == pytest.approx(brute_delta(p, g, schedule), abs=1e-5)
        going = [r for r in range(n) if t < len(generated[r])]
        if not going:
            break
        tokens = torch.tensor([generated[r][t] for r in going], device=twin.device)
        batch.update(tokens, torch.tensor(going, device=twin.device))
    rebuilt = ReflectionBatch(n + 1, schedule, ring=3, device=twin.device)
    rebuilt.begin(range(n), prompts, generated)
    assert torch.equal(rebuilt.tables.state[:n, 0], batch.tables.state[:n, 0])
    assert all(torch.equal(a[:n], b[:n]) for a, b in zip(rebuilt.progress(), batch.progress(), strict=True))


@given(st.data())
def test_rejected_drafts(twin, data):
    """Drafts are taken, their rows see the state before each of them, some are rejected: as if never taken."""
    schedule = data.draw(schedules)
    prompt, kept = data.draw(token_lists), data.draw(token_lists)
    batch, plain = (ReflectionBatch(1, schedule, ring=8, device=twin.device) for _ in range(2))
    for b in (batch, plain):
        b.begin([0], [prompt])
    slot, done = torch.tensor([0], device=twin.device), []
    while len(done) < len(kept):
        accepted = data.draw(st.integers(0, 3))
        drafts = kept[len(done) : len(done) + accepted] + data.draw(st.lists(st.integers(0, 8), max_size=3))
        if not drafts:
            drafts = [0]
        batch.update(torch.tensor([drafts], device=twin.device), slot)
        rows = len(drafts) + 1
        back = torch.arange(len(drafts), -1, -1, device=twin.device)
        delta = batch.apply_(torch.zeros(rows, VOCAB, device=twin.device), slot.expand(rows).contiguous(), back=back)
        want = [brute_delta(prompt, done + drafts[:i], schedule) for i in range(rows)]
        assert delta.tolist() == pytest.approx(want, abs=1e-5)
        n = min(accepted, len(kept) - len(done))
        batch.rollback(slot, torch.tensor([len(drafts) - n], device=twin.device))
        done += drafts[:n]
        if n == 0:  # the target model's own token
            batch.update(torch.tensor([kept[len(done)]], device=twin.device), slot)
            done.append(kept[len(done)])
    plain.begin([0], [prompt], [kept])
    assert all(torch.equal(a, b) for a, b in zip(batch.progress(), plain.progress(), strict=True))


def test_a_slot_is_used_again(twin):
    """Nothing of the former request is left, whatever it was; its neighbour does not notice."""
    schedule = wave_of("triangle", anchor="reflection")
    batch = ReflectionBatch(2, schedule, device=twin.device)
    batch.begin([0, 1], [[3, 1], [3]], [[1, 7, 4, 3], [2, 7]])
    before = [x[1].item() for x in batch.progress()]
    batch.begin([0], [[7]], schedule=wave_of("constant", amplitude=-1.0))
    fresh = ReflectionBatch(2, wave_of("constant", amplitude=-1.0), device=twin.device)
    fresh.begin([0], [[7]])
    logits = torch.zeros(2, VOCAB, device=twin.device)
    assert batch.apply_(logits)[0] == fresh.apply_(logits.clone())[0] == -1
    assert [int(x[0]) for x in batch.progress()] == [int(x[0]) for x in fresh.progress()]
    assert [x[1].item() for x in batch.progress()] == before


def test_schedules_differ_by_request(twin):
    one, other = wave_of("constant", amplitude=1.0), wave_of("constant", amplitude=2.0).replace(
        tokens=ReflectionTokens((7,), *TOKENS.markers)
    )  # fmt: skip
    batch = ReflectionBatch(3, one, device=twin.device)
    batch.set_schedule([1], other)
    batch.end([2])
    logits = torch.zeros(3, VOCAB, device=twin.device)
    assert batch.apply_(logits).tolist() == [1, 2, 0]
    assert logits.nonzero().tolist() == [[0, 1], [0, 2], [1, 7]]


def test_phases(twin):
    """A prompt that ended its thinking begins with the answer; code inside of either is code, then what it was."""
    batch = ReflectionBatch(1, wave_of("constant"), device=twin.device)
    batch.begin([0], [[*OPEN, 8, *CLOSE]])
    path = []
    for token in [8, *OPEN, 8, *CODE, 8, *END, *CLOSE]:
        batch.update(torch.tensor([token], device=twin.device))
        path.append(PHASES[int(batch.progress().phase[0])])
    assert path == ["answer", *["think"] * 3, *["code"] * 2, *["think"] * 3, "answer"]


def test_too_long_a_rollback(twin):
    batch = ReflectionBatch(2, wave_of("constant"), ring=4, device=twin.device)
    batch.begin([0, 1], [[7], [7]], [[8] * 6] * 2)
    slots, count = torch.tensor([0], device=twin.device), torch.tensor([4], device=twin.device)
    if twin.name == "cuda":
        batch.rollback(slots, count)
        assert batch.apply_(torch.zeros(2, VOCAB, device=twin.device)).tolist() == [0, 3]
        return
    with pytest.raises(ValueError, match=r"rollback\[0\] = 4, at most 3 of 7 tokens .* rebuild the slot"):
        batch.rollback(slots, count)


# ---- what replays it ------------------------------------------------------------------------------------------------


def test_replay_is_exact(twin):
    """The log-prob under the schedule, from the plain logits, delta and the temperature."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 50, generator=generator).to(twin.device)
    schedule = wave_of("triangle", amplitude=4.0)
    batch = ReflectionBatch(6, schedule, device=twin.device)
    batch.begin(range(6), [[7]] * 6, [[8] * n for n in range(6)])
    scheduled = logits.clone()
    delta = batch.apply_(scheduled)
    targets = torch.tensor([1, 2, 3, 4, 1, 9], device=twin.device)
    want = torch.log_softmax(scheduled.double() / 0.7, -1).gather(1, targets[:, None])[:, 0]
    got = warpup.replay_logprob(logits, targets, temperature=0.7, delta=delta, token_set=schedule.tokens.ids)
    torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=0)
    assert (warpup.token_logprob(logits, targets, temperature=0.7) - got).abs().max() > 0.1


# ---- s1, AlphaOne ---------------------------------------------------------------------------------------------------

SIMPLE = ReflectionTokens((1,), (3,), (4,))


def test_budget_forcing(twin):
    """The first two ends of each request's thinking become `wait`; an end marker in the answer is left alone."""
    batch = ReflectionBatch(2, tokens=SIMPLE, device=twin.device)
    batch.begin([0, 1], [[3], [3]])
    forcing = presets.BudgetForcing(batch, wait=1, times=2)
    drawn = [[4, 8], [4, 4], [4, 8], [4, 4], [8, 4]]
    taken = []
    for step in drawn:
        tokens = forcing(torch.tensor(step, device=twin.device))
        batch.update(tokens)
        taken.append(tokens.tolist())
    assert taken == [[1, 8], [1, 1], [4, 8], [4, 1], [8, 4]]
    assert batch.progress().phase.tolist() == [2, 2]


def test_alpha_one(twin):
    batch = ReflectionBatch(3, tokens=SIMPLE, device=twin.device)
    batch.begin([0, 1, 2], [[3]] * 3, [[8], [8] * 14, [8]])
    alpha = presets.AlphaOne(batch, wait=1, newlines=[7], budget=10, alpha=1.4, start=0.4)
    torch.testing.assert_close(alpha.chance(torch.tensor([0.0, 7.0, 14.0, 30.0])), torch.tensor([0.4, 0.2, 0, 0]))
    previous = torch.tensor([7, 7, 8], device=twin.device)
    tokens, low = torch.tensor([5, 1, 5], device=twin.device), torch.zeros(3, device=twin.device)
    assert alpha(tokens, previous, low).tolist() == [1, 4, 5]
    assert alpha(tokens, previous, low + 0.9).tolist() == [5, 4, 5]


def test_thought_switch_penalty(twin):
    """-alpha for beta tokens after each switch, and after the start of thinking."""
    batch = ReflectionBatch(1, presets.thought_switch_penalty(SIMPLE, 3.0, 2), device=twin.device)
    batch.begin([0], [[3]])
    deltas = []
    for token in [8, 8, 8, 1, 8, 8, 4, 8]:
        deltas.append(batch.apply_(torch.zeros(1, VOCAB, device=twin.device)).item())
        batch.update(torch.tensor([token], device=twin.device))
    assert deltas == [-3, -3, 0, 0, -3, -3, 0, 0]


# ---- schedules as objects -------------------------------------------------------------------------------------------


@given(schedules)
def test_json(schedule):
    assert ReflectionSchedule.from_json(schedule.to_json()) == schedule


def test_json_of_a_ban():
    assert ReflectionSchedule.from_json(presets.no_wait(TOKENS).to_json()) == presets.no_wait(TOKENS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wave": "square"}, "wave: expected one of .*got 'square'"),
        ({"anchor": "start"}, "anchor: expected one of"),
        ({"phase": "thinking"}, "phase: expected some of .*got 'thinking'"),
        ({"phase": ()}, "phase: expected some of"),
        ({"unit": "bit"}, "unit: expected one of"),
        ({"period": 0}, "period: expected tokens, more than 0, got 0"),
        ({"amplitude": math.nan}, "amplitude: expected a finite number"),
        ({"amplitude": math.inf}, "amplitude: expected a finite number"),
        ({"window": (5, 2)}, r"window: expected \(begin, end\)"),
        ({"wave": "table"}, "table: expected"),
        ({"table": [(0, 1)]}, "table: expected"),
        ({"wave": "table", "table": [(3, 1), (3, 2)]}, "by rising t"),
        ({"tokens": []}, "tokens: expected at least one id"),
        ({"tokens": [-1]}, "ids: expected token ids"),
        ({"wave": "constant", "period": 7}, "period: has no effect on wave 'constant', leave it at 1200, got 7"),
        ({"wave": "constant", "shift": 0.5}, "shift: has no effect on wave 'constant'"),
        ({"wave": "table", "table": [(0, 1)], "amplitude": 2.0}, "amplitude: has no effect on wave 'table'"),
        ({"wave": "table", "table": [(0, 1)], "period": 7}, "period: has no effect on wave 'table'"),
    ],
)
def test_wrong_schedules(change, message):
    with pytest.raises(ValueError, match=message):
        ReflectionSchedule(**{"tokens": [1], **change})


def test_wrong_calls():
    batch = ReflectionBatch(2, wave_of("constant"))
    with pytest.raises(ValueError, match=r"slots\[0\] = 2 is outside \[-1, 2\)"):
        batch.apply_(torch.zeros(1, 9), torch.tensor([2]))
    with pytest.raises(ValueError, match="slots must be int64, got int32"):
        batch.apply_(torch.zeros(1, 9), torch.tensor([0], dtype=torch.int32))
    with pytest.raises(ValueError, match="logits must have 2 dimensions"):
        batch.apply_(torch.zeros(9))
    with pytest.raises(ValueError, match=r"temperature must have shape \(2\), got \(3\)"):
        batch.apply_(torch.zeros(2, 9), temperature=torch.ones(3))
    with pytest.raises(ValueError, match="tokens must be int64, int32, got float32"):
        batch.update(torch.zeros(2))
    with pytest.raises(ValueError, match=r"row 0 has tokens \[0, 3\) of 2"):
        batch.update(torch.zeros(1, 2, dtype=torch.int64), count=torch.tensor([3]))
    zero = torch.tensor([0])
    with pytest.raises(ValueError, match=r"rollback\[0\] = 1 beside prompt\[0\] = 0: a slot that begins anew has no"):
        reflection_state_update_(batch.tables, zero[:, None], zero, prompt=zero, rollback=zero + 1)
    with pytest.raises(ValueError, match="times: expected at least 1, got 0"):
        presets.BudgetForcing(ReflectionBatch(1, tokens=SIMPLE), wait=1, times=0)
    with pytest.raises(ValueError, match=r"markers .* are not the batch's"):
        batch.set_schedule([0], wave_of("constant", tokens=SIMPLE))
    with pytest.raises(ValueError, match="no room for 2 more sets"):
        ReflectionBatch(2, wave_of("constant"), ids=1)


# ---- tokenizers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def byte_level():
    """A byte-level BPE like those of the published models, trained on a few sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = ["wait Wait but But however, await waiting", "Alternatively", " wait Wait but But, hmm"] * 60
    specials = ["<think>", "</think>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def test_every_variant_is_found(byte_level):
    tokens = ReflectionTokens.from_tokenizer(byte_level, ["wait", "but"])
    texts = {byte_level.decode([i]) for i in tokens.ids}
    assert texts >= {"wait", "Wait", " wait", " Wait", " but", " But"}
    assert all(t.strip(" ,").lower() in ("wait", "but") for t in texts), texts
    assert tokens.think_start == (byte_level.convert_tokens_to_ids("<think>"),)
    assert tokens.think_end == (byte_level.convert_tokens_to_ids("</think>"),)
    plain = ReflectionTokens.from_tokenizer(byte_level, ["wait"], case=False, space=False)
    assert {byte_level.decode([i]) for i in plain.ids} == {"wait"}


@pytest.mark.filterwarnings("default")
def test_multi_token_and_missing_words(byte_level):
    with pytest.warns(UserWarning, match="'perhaps' takes . tokens .* is left out"):
        tokens = ReflectionTokens.from_tokenizer(byte_level, ["wait", "perhaps"])
    assert tokens.ids == ReflectionTokens.from_tokenizer(byte_level, ["wait"]).ids
    warnings.simplefilter("ignore")
    with pytest.raises(ValueError, match=r"none of .* is a single token"):
        ReflectionTokens.from_tokenizer(byte_level, ["perhaps"])
    with pytest.raises(ValueError, match="cannot spell 'perhaps'"):
        ReflectionTokens.from_tokenizer(word_tokenizer(), ["wait", "perhaps"])
    for name in ("think", "code"):
        with pytest.raises(ValueError, match=f"{name}: the tokenizer cannot spell"):
            ReflectionTokens.from_tokenizer(word_tokenizer(), ["wait"], **{name: ("<a>", "</a>")})


def test_code_markers(byte_level):
    """The usual pair is left out where it is not two tokens; a pair that is given is taken in pieces, too."""
    usual = ReflectionTokens.from_tokenizer(byte_level, ["wait"])
    assert usual.code_start == usual.code_end == ()
    given = ReflectionTokens.exactly(byte_level, ["wait"], code=("wait", "{}"))
    assert given.code_start == tuple(byte_level.encode("wait"))
    assert given.code_end == tuple(byte_level.encode("{}"))
    assert len(given.code_end) > 1
    assert ReflectionTokens.exactly(byte_level, ["wait"], code=None).markers[2:] == ((), ())


def test_paper_exact(byte_level):
    schedule = ReflectionSchedule.paper_exact(byte_level)
    assert (schedule.wave, schedule.amplitude, schedule.period) == ("triangle", 5.0, 1200)
    assert {byte_level.decode([i]) for i in schedule.tokens.ids} == {"wait", "Wait", "but", "But", "Alternatively"}
    with pytest.raises(ValueError, match=r"not single tokens of this tokenizer: \['Wait', 'but'"):
        ReflectionSchedule.paper_exact(word_tokenizer())


def test_plot():
    import matplotlib

    matplotlib.use("agg")
    ax = wave_of("triangle").plot([[1, 7, 7, 2], [7, 7, 1]], length=24)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), wave_of("triangle").delta(np.arange(24)))
    counts = [p.get_height() for p in ax.figure.axes[1].patches]
    assert sum(counts) == 3


def test_too_long_a_marker():
    with pytest.raises(ValueError, match="think_end: expected at most 8 token ids"):
        ReflectionTokens((1,), think_end=tuple(range(9)))
