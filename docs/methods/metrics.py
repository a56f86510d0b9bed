"""Metrics: pure functions of arrays."""


def row_10():
    """Hyperparameters in Continual Learning: a Reality Check

    T3: not yet.
    """


def row_16():
    """Scalable and Equitable Math Problem Solving Strategy Prediction in Big Educational Data

    T3: not yet.
    """


def row_28():
    """One Epoch Is All You Need

    T3: not yet.
    """


def row_30():
    """Continual Learning of Large Language Models: A Comprehensive Survey

    T4: not yet.
    """


def row_35():
    """FightLadder: A Benchmark for Competitive Multi-Agent Reinforcement Learning

    T4: not yet.
    """


def row_41():
    """Modeling of learning curves with applications to pos tagging

    T3: not yet.
    """


def row_42():
    """On Teacher Hacking in Language Model Distillation

    T1: not yet.
    """


def row_48():
    """In-Context Learning Strategies Emerge Rationally

    T3: not yet.
    """


def row_50():
    """High-dimensional dynamics of generalization error in neural networks

    T4: not yet.
    """


def row_51():
    """What needs to go right for an induction head? A mechanistic study of in-context learning circuits and their
    formation

    T3: not yet.
    """


def row_56():
    """Where to find Grokking in LLM Pretraining? Monitor Memorization-to-Generalization without Test

    T3: `warpup.moe.metrics.RoutingMetrics`. Read `cosine`, the mean cosine of neighboring layers: the published
    `consistency` divides by the largest layer's mean, which is near 0 in a model whose routers have learned
    nothing.
    """
    import torch

    from warpup.moe.metrics import RoutingMetrics

    metrics = RoutingMetrics(layers=2, experts=2, router=[torch.eye(2), torch.eye(2)])
    samples, one = torch.tensor([0, 1]), torch.ones(2, 1)
    metrics.update(0, one, torch.tensor([[0], [0]]), samples)
    metrics.update(1, one, torch.tensor([[1], [0]]), samples)
    report = metrics.results()
    assert report.pathways == {0: ((0,), (1,)), 1: ((0,), (0,))}
    assert report.distance == 1  # one expert differs
    assert report.cosine == 0.5  # sample 0 turns by a right angle, sample 1 goes straight on


def row_86():
    """Experts Don't Cheat: Learning What You Don't Know By Predicting Pairs

    T2: not yet.
    """


def row_98():
    """A Domain-Agnostic Approach for Characterization of Lifelong Learning Systems

    T2: not yet.
    """


def row_99():
    """Continual evaluation for lifelong learning: Identifying the stability gap

    T2: not yet.
    """
