"""States, anchors, replay, sparse masks, adaptation: what the snippets of docs/methods.md leave open."""

import json
from collections import Counter

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from warpup import continual


def test_average_weighs_rounds_once_and_takes_the_largest_counter():
    states = [
        {"w": torch.tensor([a], dtype=torch.bfloat16), "seen": torch.tensor(n)}
        for a, n in ((256.0, 3), (1.0, 5), (1, 4))
    ]
    mean = continual.average(states, [2, 3, 3])
    assert mean["w"].dtype == torch.bfloat16
    assert mean["w"] == torch.tensor(518 / 8).bfloat16()  # summed in bfloat16, 256 would swallow the ones
    assert mean["seen"] == 5


def test_ema_without_mask_is_torchs():
    torch.manual_seed(0)
    teacher, student = nn.Linear(3, 2), nn.Linear(3, 2)
    averaged = AveragedModel(teacher, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(teacher)  # the first call copies
    averaged.update_parameters(student)
    continual.ema_update_(dict(teacher.named_parameters()), dict(student.named_parameters()), 0.9)
    for own, theirs in zip(teacher.parameters(), averaged.module.parameters(), strict=True):
        torch.testing.assert_close(own, theirs)


def test_server_takes_any_optimizer_and_leaves_the_rest_alone():
    server = nn.Linear(2, 1)
    bias = server.bias.detach().clone()
    adam = torch.optim.Adam(server.parameters(), 0.1)
    before = server.weight.detach().clone()
    continual.server_step(server, [{"weight": torch.tensor([[3.0, -0.2]])}], adam)
    torch.testing.assert_close(server.weight.detach(), before + 0.1 * torch.tensor([[1.0, -1.0]]))  # Adam's first step
    assert server.bias.equal(bias)


def test_fisher_of_single_examples_is_the_mean_of_squared_gradients():
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2), torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    parameters = dict(model.named_parameters())
    losses = ((nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), 1) for i in range(5))
    fisher = continual.diagonal_fisher(parameters, losses)
    p = model(x).softmax(-1) - nn.functional.one_hot(y, 2)  # gradient by the logits
    torch.testing.assert_close(fisher["bias"], p.square().mean(0).detach())
    torch.testing.assert_close(fisher["weight"], (p[:, :, None] * x[:, None]).square().mean(0).detach())


def test_lora_deltas_are_what_a_merge_adds():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.Embedding(5, 3))
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0", "2", "3"], init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    deltas = continual.lora_deltas(model)
    assert deltas.keys() == {"0.weight", "2.weight", "3.weight"}
    continual.ewc_penalty(deltas, {name: torch.ones_like(d) for name, d in deltas.items()}).backward()
    assert all(p.grad.abs().sum() > 0 for name, p in model.named_parameters() if "lora" in name)
    merged = model.merge_and_unload().state_dict()
    for name, delta in deltas.items():
        torch.testing.assert_close(before[name] + delta, merged[name])


def test_reservoir_keeps_each_item_alike_and_resumes():
    kept = Counter()
    for seed in range(400):
        memory = continual.Reservoir(4, seed)
        for item in range(20):
            memory.add(item)
        kept.update(memory.items)
    assert sum(kept.values()) == 1600
    assert all(50 <= kept[item] <= 110 for item in range(20))  # 80 each, deviation 8
    other = continual.Reservoir(4)
    other.load_state_dict(memory.state_dict())
    for either in (memory, other):
        either.add(20)
    assert (other.items, other.sample(2)) == (memory.items, memory.sample(2))


def test_shift_says_nothing_before_its_window_is_full():
    detector = continual.ShiftDetector(window=3)
    assert not any(detector.update(x) for x in (1.0, 50.0, 3.0))
    assert detector.switch([0.0]) == 1
    assert detector.limit(1) == float("inf")


def test_an_expert_that_is_hardly_known_is_not_chosen_again():
    detector = continual.ShiftDetector(smoothing=1.0, window=2)
    assert not any(detector.update(x) for x in (1.0, 1.0))
    assert detector.switch([5.0]) == 1
    detector.update(5.0)
    assert detector.smoothed == 5  # begins anew with the expert
    assert detector.switch([1.0, 9.0]) == 0
    assert detector.switch([9.0, 5.0]) == 2  # expert 1 has seen one loss


def test_an_expert_that_is_left_out_might_as_well_not_be_there():
    torch.manual_seed(0)
    aggregator, features = continual.ExpertAggregator(4, heads=2, layers=2), torch.randn(2, 3, 4)
    torch.testing.assert_close(aggregator(features, torch.tensor([2, 2])), aggregator(features[:, :2]))


@pytest.mark.parametrize("density", [0.05, 0.3, 0.6, 1.0])
def test_erk_keeps_the_density_that_was_asked_for(density):
    shapes = [(64, 3, 3, 3), (128, 64, 3, 3), (10, 128), (5, 2)]
    densities = continual.erk_densities(shapes, density)
    sizes = [torch.Size(shape).numel() for shape in shapes]
    kept = sum(d * n for d, n in zip(densities, sizes, strict=True))
    assert kept == pytest.approx(density * sum(sizes))
    assert max(densities) <= 1


def test_frozen_weights_are_neither_dropped_nor_grown():
    torch.manual_seed(0)
    weight, frozen = torch.randn(20, 10), torch.rand(20, 10) < 0.3
    mask = (torch.rand(20, 10) < 0.5) & ~frozen
    before, active = weight.clone(), mask.sum()
    dropped = weight.abs().masked_fill(~mask, torch.inf).flatten().topk(int(0.4 * active), largest=False).indices
    scores = torch.rand_like(weight).view(-1).index_fill(0, dropped, -1.0).view_as(weight)  # not the same ones again
    continual.prune_and_grow_(weight, mask, 0.4, scores, frozen)
    assert mask.sum() == active
    assert not (mask & frozen).any()
    assert weight[frozen].equal(before[frozen])
    assert not mask.view(-1)[dropped].any()
    assert weight[mask].count_nonzero() == active - int(0.4 * active)  # what has grown is 0


def test_a_detector_resumes_exactly():
    losses = [1.0, 1.1, 0.9, 1.0, 5.0, 1.0, 0.9, 1.1, 9.0]

    def run(detector, some):
        found = []
        for loss in some:
            found.append(detector.update(loss))
            if found[-1]:
                found.append(detector.switch([loss] * len(detector.state_dict()["losses"])))
        return found

    whole, first, second = (continual.ShiftDetector(smoothing=1.0, window=3) for _ in range(3))
    every = run(whole, losses)
    begun = run(first, losses[:6])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert begun + run(second, losses[6:]) == every
    assert True in every
    with pytest.raises(ValueError, match="the state has window 3, this one 4"):
        continual.ShiftDetector(window=4).load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: continual.average([]), "average: states must hold at least one"),
        (lambda: continual.average([{"a": torch.ones(1)}], [0.0]), "average: weights must have a finite sum above 0"),
        (lambda: continual.average([{"a": torch.ones(1)}, {"b": torch.ones(1)}]), "average: states must have the same"),
        (lambda: continual.average([{"a": torch.ones(1)}, {"a": torch.ones(2)}]), "a must have one shape"),
        (lambda: continual.keep_largest({"a": torch.ones(1)}, 0.0), "keep_largest: share must be above 0"),
        (lambda: continual.ewc_penalty({}, {"a": torch.ones(1)}), "ewc_penalty: fisher has 'a'"),
        (
            lambda: continual.ewc_penalty({"a": torch.ones(2, 1)}, {"a": torch.ones(2)}),
            r"fisher\['a'\] must have the shape of values\['a'\], \(2, 1\), got \(2,\)",
        ),
        (
            lambda: continual.ewc_penalty({"a": torch.ones(2)}, {"a": torch.ones(2)}, {"a": torch.ones(1)}),
            r"anchor\['a'\] must have the shape of values\['a'\]",
        ),
        (lambda: continual.output_anchor([torch.ones(2)], []), "outputs and before must be equally many"),
        (
            lambda: continual.output_anchor([torch.ones(2)], [torch.ones(2, 1)]),
            r"before\[0\] must have the shape of outputs\[0\]",
        ),
        (lambda: continual.diagonal_fisher({"a": torch.ones(1)}, []), "diagonal_fisher: losses must hold at least one"),
        (lambda: continual.lora_deltas(nn.Linear(1, 1)), "lora_deltas: model has no LoRA layer"),
        (lambda: continual.erk_densities([(2, 2)], 1.5), "erk_densities: density must be above 0"),
        (lambda: continual.fisher_mask({"a": torch.ones(1)}, 1.0), "fisher_mask: share must be above 0"),
        (lambda: continual.ShiftDetector().switch([]), "ShiftDetector: losses must be one for each of 1"),
        (lambda: continual.ShiftDetector().update(float("nan")), "ShiftDetector: loss must be finite"),
        (lambda: continual.prune_rate(0, 0), "prune_rate: steps must be at least 1"),
        (lambda: continual.ewc_penalty({}, {}), "ewc_penalty: fisher must name at least one"),
        (lambda: continual.fisher_mask({}), "fisher_mask: squared must name at least one"),
        (lambda: continual.keep_largest({}, 0.5), "keep_largest: state must name at least one"),
        (lambda: continual.ExpertAggregator(2)(torch.ones(1, 1, 2), torch.tensor([0])), "at least 2 experts"),
        (lambda: continual.Reservoir(0), "Reservoir: capacity must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    if message.startswith("lora"):
        pytest.importorskip("peft")
    with pytest.raises(ValueError, match=message):
        call()
