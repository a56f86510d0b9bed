"""Measuring counts what is right and changes nothing."""

import math

import pytest
import torch

from tests.support.tiny import (
    EXAMPLES,
    TOKENIZER,
    llama,
)
from warpup.train import (
    evaluate,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_evaluate_counts_right_answers():
    model = llama().eval()
    held = [{"prompt": row["prompt"], "n": i} for i, row in enumerate(EXAMPLES[:6])]

    class Verdict:
        def __init__(self, right):
            self.reward, self.correct, self.format_ok = 2.0 * right, right, True

    random_state = torch.get_rng_state()
    result = evaluate(
        model, TOKENIZER, held, lambda text, row: Verdict(row["n"] < 2), samples=3, max_new_tokens=5, rows=4
    )
    assert torch.equal(torch.get_rng_state(), random_state)
    assert result.avg == result.greedy == pytest.approx(1 / 3)
    assert (result.reward, result.format_ok) == (pytest.approx(2 / 3), 1.0)
    assert [trace["correct"] for trace in result.traces] == [1, 1, 0, 0, 0, 0]
    every_word = TOKENIZER.get_vocab()
    words = evaluate(model, TOKENIZER, held, lambda *_: 0, samples=0, max_new_tokens=5, reflection_words=every_word)
    assert words.reflections == pytest.approx(words.length, abs=1)
    assert math.isnan(words.avg)


def test_measuring_leaves_every_module_s_mode():
    """In RLVR a model is in eval(), but for its checkpointed layers: else the first measurement would end that."""
    model = llama().eval()
    model.model.layers[1].training = True
    evaluate(model, TOKENIZER, EXAMPLES[:1], lambda *_: 0, samples=0, max_new_tokens=2)
    assert [m for m in model.modules() if m.training] == [model.model.layers[1]]
