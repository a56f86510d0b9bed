"""Distillation and losses beside it."""


def row_5():
    """User Satisfaction Estimation with Sequential Dialogue Act Modeling in Goal-oriented Conversational Systems

    T3: not yet.
    """


def row_62():
    """Learning useful representations for shifting tasks and distributions

    T3: not yet.
    """


def row_76():
    """Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head

    T1: `warpup.divergence(kind="binary", scale_by_t2=True)` on an auxiliary head's logits, beside the cross-entropy
    of the main head.
    """
    import math

    import torch

    from warpup import divergence

    student = torch.zeros(1, 1, requires_grad=True)
    teacher = torch.tensor([[2 * math.log(3)]])  # sigmoid(z / 2) = .75
    loss = divergence(student, teacher, kind="binary", temperature=2.0, scale_by_t2=True).sum()
    torch.testing.assert_close(loss, torch.tensor(4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))))
    loss.backward()
    torch.testing.assert_close(student.grad, torch.tensor([[2 * (0.5 - 0.75)]]))  # T (s(z_S / T) - s(z_T / T))


def row_83():
    """Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation

    T2: not yet.
    """
