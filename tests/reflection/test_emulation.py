"""Emulated fine-tuning beside `sample_step`, and what cannot be."""

import math

import pytest
import torch

from warpup import ReflectionBatch
from warpup.reflection import emulated_logprob


def test_one_trait_is_what_sample_step_draws_from():
    torch.manual_seed(0)
    large, small, tuned = torch.randn(3, 4, 11)
    batch = ReflectionBatch(4)
    batch.begin(range(4), [[0]] * 4)
    batch.set_sampling(range(4), beta=1.7)
    step = batch.sample(large, tuned=tuned, base=small)
    found = emulated_logprob(large, small, [tuned], strength=1.7)
    torch.testing.assert_close(step.logp, found.gather(1, step.token[:, None])[:, 0])


def test_several_traits_are_the_mean_of_their_logits():
    torch.manual_seed(1)
    large, small, one, two = torch.randn(4, 3, 11, dtype=torch.float64)
    mixed = emulated_logprob(large, small, [0.3 * one + 0.7 * two])
    torch.testing.assert_close(emulated_logprob(large, small, [one, two], weights=[0.3, 0.7]), mixed)


def test_top_p_is_of_the_large_model():
    large, small = torch.tensor([[0.1, 0.6, 0.3]]).log(), torch.zeros(1, 3)
    tuned = torch.tensor([[9.0, 0.0, 0.0]])
    for top_p, left in ((0.5, [1]), (0.7, [1, 2]), (1.0, [0, 1, 2])):
        found = emulated_logprob(large, small, [tuned], top_p=top_p)
        assert found.isfinite()[0].nonzero().flatten().tolist() == left
        torch.testing.assert_close(found.exp().sum(), torch.tensor(1.0))


@pytest.mark.parametrize("ruling_out", [(0, 1, 2), (0,), (1, 2), (2,)])
def test_a_token_that_is_ruled_out_stays_so(ruling_out):
    torch.manual_seed(2)
    large, small, tuned = models = torch.randn(3, 2, 6)
    want = emulated_logprob(large[:, :4], small[:, :4], [tuned[:, :4]])
    models[list(ruling_out), :, 4:] = -torch.inf  # all: what pads a vocabulary
    unheard = torch.full_like(tuned, -torch.inf).index_fill(1, torch.tensor([0]), 0.0)  # a trait of weight 0
    found = emulated_logprob(large, small, [tuned, unheard], weights=[1.0, 0.0])
    torch.testing.assert_close(found[:, :4], want)
    assert (found[:, 4:] == -torch.inf).all()


def test_what_cannot_be():
    large = torch.zeros(2, 5)
    for arguments, options, message in (
        ((large, large, []), {}, "at least one tuned model"),
        ((large, large, [large]), {"weights": [0.5]}, "1 in all"),
        ((large, large, [large]), {"weights": [math.nan]}, "1 in all"),
        ((large, large, [large]), {"strength": math.nan}, "strength must be finite"),
        ((large, large, [large, large]), {"weights": [2.0, -1.0]}, "at least 0 for each"),
        ((large, large[:, :4], [large]), {}, r"small must have large's shape \(2, 5\), got \(2, 4\)"),
        ((large, large, [large[0]]), {}, r"tuned\[0\] must have"),
        ((large, large, [large]), {"top_p": 0.0}, "top_p must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            emulated_logprob(*arguments, **options)
