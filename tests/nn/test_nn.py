"""Parts of networks: what the snippets of docs/methods.md leave open."""

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import create_mask

from warpup.nn import (
    INFORMATION,
    QUESTION,
    STATE,
    THOUGHT,
    ConditioningDropout,
    GhostBatchNorm,
    Incubator,
    QKNorm,
    memory_mask,
    stack_stages,
)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 2, 2)])
def test_ghost_batches_are_small_batches(shape):
    torch.manual_seed(0)
    x, ghost = torch.randn(shape), GhostBatchNorm(3, ghost=4)
    small = nn.BatchNorm1d(3) if len(shape) == 2 else nn.BatchNorm2d(3)
    expected = torch.cat([small(x[:4]), small(x[4:])])  # the last one has two examples
    assert ghost(x).equal(expected)
    assert ghost.running_mean.equal(small.running_mean)
    assert ghost.running_var.equal(small.running_var)
    assert ghost.eval()(x).equal(small.eval()(x))
    with pytest.raises(ValueError, match=r"GhostBatchNorm: input must be \(B, C, ...\)"):
        GhostBatchNorm(3, ghost=2)(torch.ones(3))


def test_one_example_that_is_left_over_joins_the_ghost_batch_before_it():
    torch.manual_seed(0)
    x, small = torch.randn(5, 3), nn.BatchNorm1d(3)
    assert GhostBatchNorm(3, ghost=2)(x).equal(torch.cat([small(x[:2]), small(x[2:])]))
    one = torch.randn(3, 3, 2)  # of two places: these have a variance
    small = nn.BatchNorm1d(3)
    assert GhostBatchNorm(3, ghost=2)(one).equal(torch.cat([small(one[:2]), small(one[2:])]))


def test_queries_in_bfloat16_have_the_gradients_of_float32():
    """A LayerNorm in bfloat16 sums its weight's gradient in bfloat16 on a CPU: 4096 rows of ones give 256."""
    norm = QKNorm(2)
    query = torch.tensor([1.0, -1.0]).expand(4096, 2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = norm(query, query)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    torch.testing.assert_close(norm.query.bias.grad, torch.full((2,), 4096.0))


def test_memory_as_the_agent_had_it():
    """Attention under the mask equals attention over what was there when a turn was written."""
    torch.manual_seed(0)
    kinds = torch.tensor([[QUESTION] * 2 + [THOUGHT, STATE, STATE, INFORMATION] + [THOUGHT, THOUGHT, STATE, STATE, 9]])
    turns = torch.tensor([[0] * 2 + [1] * 4 + [2] * 3 + [3, 3]])
    x = torch.randn(1, 1, 11, 4)
    mask = create_mask(memory_mask(kinds, turns), 1, None, 11, 11, device="cpu")
    attention = nn.functional.scaled_dot_product_attention
    whole = attention(x, x, x, attn_mask=mask)
    seen = x[:, :, [0, 1, 3, 4, 5, 6, 7, 8]]  # the second turn without the first thought
    alone = attention(seen, seen, seen, is_causal=True)
    torch.testing.assert_close(whole[:, :, 6:9], alone[:, :, 5:8])
    assert mask[0, 0, 9].nonzero().flatten().tolist() == [0, 1, 8, 9]  # turn 3 has forgotten turn 1
    assert mask[0, 0, 10].nonzero().flatten().tolist() == [10]  # padding sees itself


def test_copies_go_apart_and_shared_layers_do_not():
    stages = [nn.Linear(2, 2)]
    copies = stack_stages(stages, [2], shared=False)
    with torch.no_grad():
        copies[0].weight.zero_()
    assert copies[1].weight.equal(stages[0].weight)
    assert stack_stages(stages, [2], shared=True)[1] is stages[0]
    with pytest.raises(ValueError, match="stack_stages: depths must be 1 numbers"):
        stack_stages(stages, [1, 2], shared=True)


def test_an_incubator_trains_its_module_alone():
    meta = [nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)]
    incubator = Incubator(meta, nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), place=0)
    assert len(list(incubator.parameters())) == 4
    assert all(p.requires_grad for stage in meta for p in stage.parameters())  # left as they were
    x = torch.randn(3, 2)
    assert incubator(x).equal(meta[2](meta[1](incubator.module(x))))
    with pytest.raises(ValueError, match="Incubator: place must be from 0 to 2"):
        Incubator(meta, nn.Identity(), 3)


def test_conditions_are_dropped_by_example():
    torch.manual_seed(0)
    out = ConditioningDropout(keep=0.25)(torch.zeros(4000, 2), torch.ones(4000, 2))
    assert out[:, 0].equal(out[:, 1])
    assert abs(out.mean() - 0.25) < 0.03
