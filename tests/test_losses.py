"""warpup.losses, warpup.distill and warpup.synthesis against loops: what the snippets of docs/methods.md leave open."""

import math

import pytest
import torch
from torch.nn import functional as F

from warpup import distill, divergence, losses, synthesis
from warpup.optim import unroll

IDS = torch.tensor([0, 1])


def test_contrast_is_the_double_loop():
    torch.manual_seed(0)
    x, y, t = torch.randn(7, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 2, 1, 0, 3]), 0.3
    z, each = F.normalize(x, dim=-1), []
    for i in range(7):
        others = [a for a in range(7) if a != i]
        total = sum(math.exp(z[i] @ z[a] / t) for a in others)
        same = [p for p in others if y[p] == y[i]]
        if same:
            each.append(-sum(math.log(math.exp(z[i] @ z[p] / t) / total) for p in same) / len(same))
    assert losses.supcon_loss(x, y, t) == pytest.approx(sum(each) / len(each))
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses.supcon_loss(x, y, t), x)
    assert losses.supcon_loss(torch.randn(2, 3), torch.tensor([0, 1])) == 0


def test_relations_to_themselves_are_left_out():
    torch.manual_seed(0)
    new, old = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    p, q = (F.normalize(x, dim=-1) @ F.normalize(x, dim=-1).T / 0.5 for x in (old, new))
    each = []
    for i in range(4):
        rest = [j for j in range(4) if j != i]
        each.append(-(p[i, rest].softmax(0) * q[i, rest].log_softmax(0)).sum())
    torch.testing.assert_close(losses.relation_loss(new, old, 0.5), torch.stack(each).mean())


def test_a_class_that_the_teacher_rules_out_counts_nothing():
    student = torch.tensor([[0.2, -0.3, 0.7]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.5, 1.0, -math.inf]], dtype=torch.float64)
    alpha, y = torch.ones(1, dtype=torch.float64), torch.tensor([0])
    loss = distill.fusion_loss(student, teacher, y, alpha).detach()
    p, q = teacher.softmax(-1)[0, :2], student.detach().softmax(-1)[0]
    assert loss.item() == pytest.approx(sum(float(p[i] * (p[i] / q[i]).log()) for i in range(2)))
    assert torch.autograd.gradgradcheck(lambda x: distill.fusion_loss(x, teacher, y, alpha), student)


def test_a_task_without_targets_counts_nothing():
    logits = {"a": torch.zeros(2, 3, requires_grad=True), "b": torch.zeros(2, 4, requires_grad=True)}
    targets = {"a": torch.tensor([0, 1]), "b": torch.tensor([-100, -100])}
    loss, each = losses.multitask_loss(logits, targets)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(math.log(3)))
    assert each["b"] == 0
    assert (logits["b"].grad == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: losses.multitask_loss({"a": x}, {"b": x}), "multitask_loss: logits and targets must name the same"),
        (lambda x: losses.multitask_loss({"a": x}, {"a": x}, {"c": 1.0}), "weights names 'c', which is no task"),
        (lambda x: losses.detection_loss({"a": x}, {}), "detection_loss: logits, changed and masks must name"),
        (
            lambda x: losses.detection_loss({"a": x}, {"a": x > 0}, {"a": x[0] == 0}),
            r"detection_loss: masks\['a'\] must have the shape of logits\['a'\], \(2, 2\), got \(2,\)",
        ),
        (
            lambda x: distill.fusion_loss(x, x, IDS, x[:, :1]),
            r"fusion_loss: alpha must have the shape of labels, \(2,\), got \(2, 1\)",
        ),
        (lambda x: losses.supcon_loss(x, x), r"supcon_loss: features and labels must be \(N, D\) and \(N,\)"),
        (lambda x: losses.supcon_loss(x, IDS, -1.0), "supcon_loss: temperature must be above 0"),
        (lambda x: losses.proxy_loss(x, x, IDS, 0.0), "proxy_loss: temperature must be above 0"),
        (lambda x: losses.proxy_loss(x, x[:, :1], IDS), r"proxy_loss: features, proxies and labels must be \(B, D\)"),
        (lambda x: losses.relation_loss(x, x, 0.0), "relation_loss: temperature must be above 0"),
        (lambda x: losses.relation_loss(x, x[:, :1]), "relation_loss: before must have the shape of features"),
        (lambda x: losses.hpcr_scale(1, period=0), "hpcr_scale: period must be above 0"),
        (lambda x: losses.parity_loss(x[:, 0], IDS[:1]), "parity_loss: predictions and groups must be"),
        (lambda x: losses.parity_loss(x[:0, 0], IDS[:0]), "parity_loss: predictions and groups must be"),
        (lambda x: distill.fusion_loss(x, x, IDS, x[:, 0], 0.0), "fusion_loss: temperature must be above 0"),
        (lambda x: synthesis.gradient_distance([], []), "gradient_distance: synthetic must hold at least one"),
        (lambda x: synthesis.gradient_distance([x[:1]], [x]), r"synthetic\[0\] must have the shape of real\[0\]"),
        (
            lambda x: synthesis.trajectory_distance({"a": x}, {"a": x[:1]}, {"a": x}),
            r"trajectory_distance: a: start must have the shape of target, \(2, 2\), got \(1, 2\)",
        ),
        (lambda x: synthesis.trajectory_scale(3, 2), "trajectory_scale: epoch must be from 0 to 2, got 3"),
        (lambda x: synthesis.representatives(x, IDS, 0), "representatives: per_class must be at least 1"),
        (
            lambda x: synthesis.condensation_loss(len, [], {0: x}, {1: x}, contrastive=True),
            "must have the same classes",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 2))


def test_class_means_of_absent_classes_are_0():
    logits, y = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([2, 0, 2])
    means = distill.class_means(logits, y)
    torch.testing.assert_close(means[2], torch.full((3,), 1 / 3))
    torch.testing.assert_close(means[0], logits[1].softmax(-1))
    assert (means[1] == 0).all()


def test_distillation_is_at_a_temperature_and_keeps_its_size():
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    loss = distill.fusion_loss(student, teacher, torch.tensor([0, 1, 2]), torch.ones(3), temperature=2.0)
    own = divergence(student, teacher, temperature=2.0, scale_by_t2=True).mean()
    torch.testing.assert_close(loss, own)


def test_a_fusion_net_learns_whom_to_trust():
    """Where a label is wrong and the teacher is not, the example gets more of the teacher, by the loss on held-out
    examples one step later."""
    torch.manual_seed(0)
    truth = torch.arange(2).repeat(20)
    wrong = torch.arange(40) < 10
    y, teacher = torch.where(wrong, 1 - truth, truth), F.one_hot(truth, 2) * 4.0
    student = {"z": torch.zeros(40, 2, requires_grad=True)}
    features = distill.trilateral_features(student["z"], teacher, y, distill.class_means(teacher, y))
    net = distill.FusionNet(2, hidden=16)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(60):
        later = unroll(student, lambda p, _: distill.fusion_loss(p["z"], teacher, y, net(features)), [None], 40.0)
        optimizer.zero_grad()
        F.cross_entropy(later["z"], truth).backward()
        optimizer.step()
    alpha = net(features).detach()
    assert alpha[wrong].min() > 0.9
    assert alpha[wrong].min() > alpha[~wrong].max()


def test_filters_alone_are_perturbed_by_no_more_than_themselves():
    conv, matrix = torch.full((2, 1, 3, 3), 2.0), torch.ones(2, 2)
    synthesis.perturb_filters_([conv, matrix], torch.Generator().manual_seed(0))
    assert matrix.equal(torch.ones(2, 2))
    torch.testing.assert_close((conv / 2 - 1).norm(), torch.tensor(1.0))  # d / |d|


def test_representatives_need_enough_examples():
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match="per_class is 2, class 1 has 1 examples"):
        synthesis.representatives(torch.randn(3, 2), torch.tensor([0, 0, 1]), 2)
