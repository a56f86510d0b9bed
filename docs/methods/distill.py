"""Distillation and losses beside it."""


def row_5():
    """User Satisfaction Estimation with Sequential Dialogue Act Modeling in Goal-oriented Conversational Systems

    T3: `warpup.losses.multitask_loss`: satisfaction, and gamma times the dialogue acts. The encoder over turns and the
    dialogues are the paper's.
    """
    import math

    import torch

    from warpup.losses import multitask_loss

    logits = {"satisfaction": torch.zeros(1, 2), "act": torch.zeros(1, 3, 4)}
    targets = {"satisfaction": torch.tensor([1]), "act": torch.tensor([[0, 3, -100]])}  # the last turn has no act
    loss, each = multitask_loss(logits, targets, {"act": 0.5})
    torch.testing.assert_close(loss, torch.tensor(math.log(2) + 0.5 * math.log(4)))
    torch.testing.assert_close(each["act"], torch.tensor(math.log(4)))


def row_62():
    """Learning useful representations for shifting tasks and distributions

    T3: `warpup.nn.Concat` of networks trained apart, under a linear head (CAT); `warpup.distill.MultiHeadMatch` to put
    them into one (DISTILL). The squared distance is our reading of an abstract.
    """
    import torch

    from warpup.distill import MultiHeadMatch
    from warpup.nn import Concat

    x = torch.tensor([[1.0, 2.0]])
    assert Concat(torch.nn.Identity(), torch.nn.ReLU())(-x).tolist() == [[-1.0, -2.0, 0.0, 0.0]]
    match = MultiHeadMatch(1, [1, 2])
    for head in match.heads:
        torch.nn.init.constant_(head.weight, 2.0)
        torch.nn.init.zeros_(head.bias)
    loss = match(torch.tensor([[1.0]]), [torch.tensor([[5.0]]), torch.tensor([[3.0, 4.0]])])
    torch.testing.assert_close(loss, torch.tensor((2 - 1) ** 2 + (2 - 0.6) ** 2 + (2 - 0.8) ** 2))


def row_76():
    """Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head

    T1: `warpup.divergence(kind="binary", scale_by_t2=True)` on an auxiliary head's logits, beside the cross-entropy of
    the main head; `warpup.optim.project_conflict` where the two gradients disagree.
    """
    import math

    import torch

    from warpup import divergence
    from warpup.optim import project_conflict

    student = torch.zeros(1, 1, requires_grad=True)
    teacher = torch.tensor([[2 * math.log(3)]])  # sigmoid(z / 2) = .75
    loss = divergence(student, teacher, kind="binary", temperature=2.0, scale_by_t2=True).sum()
    torch.testing.assert_close(loss, torch.tensor(4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))))
    loss.backward()
    torch.testing.assert_close(student.grad, torch.tensor([[2 * (0.5 - 0.75)]]))  # T (s(z_S / T) - s(z_T / T))
    (projected,) = project_conflict([torch.tensor([1.0, 0.0])], against=[torch.tensor([-1.0, 1.0])])
    assert projected.tolist() == [0.5, 0.5]  # g + 1 / 2 h


def row_83():
    """Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation

    T2: `warpup.distill`: `class_means`, `trilateral_features`, `FusionNet`, `fusion_loss`; the outer problem goes
    through `warpup.optim.unroll`. Features are, by our reading, the vectors S, T, G, class mean and their differences,
    the loss alpha t^2 KD + (1 - alpha) CE. The net gets its gradient through the unrolled step.
    """
    import math

    import torch
    from torch.nn.functional import cross_entropy

    from warpup.distill import FusionNet, class_means, fusion_loss, trilateral_features
    from warpup.optim import unroll

    student, teacher, y = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]]), torch.tensor([0])
    features = trilateral_features(student, teacher, y, class_means(teacher, y))
    corners = [0.5, 0.5, 0.75, 0.25, 1.0, 0.0, 0.75, 0.25]  # S, T, G, M
    edges = [-0.5, 0.5] + [-0.25, 0.25] * 4  # S - G; T - G, S - T, S - M, M - G
    torch.testing.assert_close(features, torch.tensor([corners + edges]))
    loss = fusion_loss(student, teacher, y, torch.tensor([0.25]))
    kd = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    torch.testing.assert_close(loss, torch.tensor(0.25 * kd + 0.75 * math.log(2)))

    net, weights = FusionNet(2), {"logits": student.clone().requires_grad_()}
    later = unroll(weights, lambda p, _: fusion_loss(p["logits"], teacher, y, net(features)), [None], rate=1.0)
    cross_entropy(later["logits"], y).backward()  # of a held-out example
    # d logits / d alpha is d CE - d KD = (-.5, .5) - (-.25, .25), d CE / d logits is (p - 1, 1 - p)
    alpha, p = net(features).item(), later["logits"].softmax(-1)[0, 0].item()
    slope = (p - 1) * -0.25 + (1 - p) * 0.25
    torch.testing.assert_close(net.layers[2].bias.grad, torch.tensor([slope * alpha * (1 - alpha)]))
