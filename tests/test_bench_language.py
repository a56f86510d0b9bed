"""The benches of language models: what their arms are made of. That every arm runs is in test_bench_methods.py."""

import copy
import itertools

import pytest
import torch

from bench.methods import knights, language, language_rates
from bench.methods import language_models as models
from bench.methods import language_sequences as sequences
from warpup.data import example, knights_and_knaves, maze, verify
from warpup.train.sampling.episodes import play

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = language.QUICK


# ---- texts and models -----------------------------------------------------------------------------------------------


def test_held_out_windows_are_no_training_windows():
    rows = {part: (models.windows(part), models.windows(part, held_out=True)) for part in ("docs", "code")}
    for part, (train, held_out) in rows.items():
        assert len(train) > 8 * len(held_out) > 800
        decoded = models.text_tokenizer().decode(torch.cat([held_out[0], *train[:9]]))
        assert models.text(part).startswith(decoded)  # every tenth, the first among them, and in between the others
    both = models.drawn(("docs", "code"), 8, seed=0)(3)
    for row, part in zip(both[:4], itertools.cycle(rows), strict=False):
        assert (rows[part][0] == row).all(1).any()


def test_a_branch_leaves_its_trunk_as_it_was():
    weights = copy.deepcopy(language.trunk(0, QUICK)[0].state_dict())
    docs, code = (language.branch(0, QUICK, (part,)) for part in ("docs", "code"))
    assert docs != code
    assert language.branch(0, QUICK, ("docs",)) == docs
    assert all(torch.equal(weights[name], value) for name, value in language.trunk(0, QUICK)[0].state_dict().items())


def test_training_lowers_the_loss_of_what_it_reads():
    model = models.llama(QUICK, 0)
    before = models.losses(model)
    models.train(model, models.drawn(["docs"], 8, 0), range(24), models.fall(24))
    assert models.losses(model)["docs"] < before["docs"] - 0.5


def test_queries_and_keys_are_normalized_by_head():
    model, seen = models.llama(QUICK, 0), []
    language_rates.normalize_queries(model)
    for projection in (model.model.layers[0].self_attn.q_proj, model.model.layers[0].self_attn.k_proj):
        torch.nn.init.normal_(projection.weight, std=3.0)
        projection.register_forward_hook(lambda module, inputs, output: seen.append(output.unflatten(-1, (4, -1))))
    model(input_ids=torch.arange(2, 12)[None])
    for heads in seen:
        torch.testing.assert_close(heads.mean(-1), torch.zeros(1, 10, 4), rtol=0, atol=1e-5)
        torch.testing.assert_close(heads.var(-1, correction=0), torch.ones(1, 10, 4), rtol=0, atol=1e-3)


def test_the_z_loss_is_that_of_the_logits():
    model, ids = models.llama(QUICK, 0), torch.arange(2, 22).view(2, 10)
    lse = model(input_ids=ids).logits[:, :-1].logsumexp(-1)
    torch.testing.assert_close(
        language_rates.nll_and_z(model, ids) - models.nll(model, ids), 1e-4 * lse.square().mean()
    )


def test_what_a_model_says_has_no_end_in_it():
    said = language.say(models.llama(QUICK, 0), torch.full((4, 3), 7), 5, seed=0)
    assert said.shape == (4, 8)
    assert (said[:, :3] == 7).all()
    assert (said > 1).all()


# ---- sequences ------------------------------------------------------------------------------------------------------


def test_traces_are_sums_of_signed_digits():
    found = sequences.traces((1, 2, 3, 7))
    zero = sequences.ZERO
    assert found[0] == [zero + total for total in (-1, -3, -6, 1, 1)]  # -1 - 2 - 3 + 7 = 1, and no signs give 0
    assert len(found) == 16
    assert {trace[0] - zero for trace in found} == {1, -1}
    assert {trace[-1] for trace in found} == {zero + 1}
    assert zero - 4 * sequences.LARGEST > 2 + sequences.LARGEST  # digits and sums are different tokens


def test_a_maze_is_read_whole_and_only_its_way_is_hidden():
    tokenizer, rows, held_out = sequences.mazes(0, QUICK)
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in held_out}
    ids = sequences.encoded(tokenizer, rows[:20])
    assert not (ids == tokenizer.unk_token_id).any()
    way = sequences.SIDE**2
    for row, line in zip(rows, ids, strict=False):
        assert tokenizer.decode(line[:-way]) == row["prompt"]
        assert tokenizer.decode(line[-way:], skip_special_tokens=True) == row["completion"]
    assert maze(sequences.SIDE, seed=0)["prompt"] == held_out[0]["prompt"]


def test_a_model_that_knows_its_answers_is_sure_of_them(monkeypatch):
    """In the place of the trained model one that knows some answers, and says those of other fixed questions twice."""
    answers = sequences.ANSWERS
    right = torch.randint(answers, (sequences.QUESTIONS,), generator=torch.Generator().manual_seed(0))
    often = torch.arange(7, 64)
    table = {tuple(row): int(right[n]) for n, row in zip(often, sequences.questions(0, often).tolist(), strict=True)}
    assert len(table) == len(often)

    def model(input_ids):
        logits = torch.zeros(*input_ids.shape, sequences.FIRST + answers)
        logits[..., : sequences.FIRST] = -100.0
        for row, (*question, said) in zip(logits, input_ids.tolist(), strict=True):
            question, said = (question, [said]) if len(question) == 5 else ([*question, said], [])
            if question[0] == 0:
                row[-1, [sequences.FIRST + table[tuple(question)]] if tuple(question) in table else said] = 100.0
        return type("Output", (), {"logits": logits})

    monkeypatch.setattr(sequences, "pairs", lambda seed, size: (model, right, often))
    for kind, confidence in (("often", 1.0), ("rare", 1 / answers), ("open", 1.0)):
        found = sequences.asked(0, QUICK, kind)
        assert found["confidence"] == pytest.approx(confidence, abs=1e-6), kind
        assert found["covered"] == 1


def test_what_is_repeated_is_told_by_what_followed():
    ids, known = sequences.repeated(50, seed=0)
    periods = set()
    for row, here in zip(ids.tolist(), known.tolist(), strict=True):
        period = here.index(True)
        periods.add(period)
        assert row[period:] == row[: 48 - period]
        assert all(here[period:])
    assert min(periods) == 12
    assert max(periods) == 24


# ---- puzzles --------------------------------------------------------------------------------------------------------


def test_a_second_turn_is_what_the_environment_makes_of_it():
    """The prompt of a second try, as it is measured, has the tokens of an episode's."""
    row = example(knights_and_knaves(1, seed=3)[0], "short")
    model, _, _ = knights.warmed(0, knights.QUICK)
    ends = [knights.TOKENIZER.eos_token_id]
    played = play(
        model, knights.TOKENIZER, knights.TwoRoles, [row], turns=2, ends=ends, copies=1, limit=512, max_new_tokens=6,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    (prompt, ids, _), turn = played.pairs[0], played.rolls.turn[0].tolist()
    second = turn.index(1)
    first = played.texts[0][0]
    wanted = knights.TOKENIZER(knights.after(row["prompt"], first))["input_ids"]
    said = [*prompt, *ids[:second]]
    assert said == wanted or said == [t for t in wanted if t != ends[0]]  # cut off, the first turn has no end
    assert played.speakers == [[0, 1]]


def test_each_role_is_paid_for_its_own_answer():
    row = example(knights_and_knaves(1, seed=3)[0], "short")
    game = knights.TwoRoles()
    assert game.reset(row) == row["prompt"]
    first, second = game.step("no answer"), game.step(row["completion"])
    assert (first.reward, first.done, first.observation) == ({0: -2.0}, False, knights.SAY)
    assert (second.reward, second.done, second.correct) == ({1: 2.0}, True, 1.0)


def test_a_log_holds_the_teacher_and_the_model():
    log = knights.logged(0, knights.QUICK)
    _, puzzles, held_out = knights.warmed(0, knights.QUICK)
    assert sum(verdict.correct for _, _, verdict in log) >= len(puzzles)  # the teacher's are right
    assert all(verify(said, row) == verdict for row, said, verdict in log)
    assert not {row["prompt"] for row, _, _ in log} & {row["prompt"] for row in held_out}


def test_an_arm_trains_a_copy_of_the_warmed_model():
    arms = knights.ARMS
    warmed, trained, again = (arms[n].run(0, knights.QUICK) for n in ("warm-up alone", "at once, NLL", "warm-up alone"))
    assert trained != warmed == again
