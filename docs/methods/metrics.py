"""Metrics: pure functions of arrays."""


def row_10():
    """Hyperparameters in Continual Learning: a Reality Check

    T3: `warpup.metrics.tune_then_evaluate`.
    """
    from warpup.metrics import tune_then_evaluate

    def accuracy(best, rate, seed):
        """Of a run on data on which the rate `best` would be right."""
        return 0.9 - abs(rate - best) + 0.01 * seed

    found = tune_then_evaluate(accuracy, [0.1, 0.2, 0.3], tuning=0.2, evaluation=0.3, seeds=[-1, 1])
    assert found.best == 0.2
    assert (round(found.tuning, 6), round(found.score, 6)) == (0.9, 0.8)


def row_16():
    """Scalable and Equitable Math Problem Solving Strategy Prediction in Big Educational Data

    T3: `warpup.data.dp_means`, `BalancedSampler`, `warpup.metrics.group_gap`. The embeddings of pupils and problems
    are the paper's own. Predictive equality is the gap of error rates; `where` the truth is 0 it is that of false
    alarms.
    """
    from warpup.data import BalancedSampler, dp_means
    from warpup.metrics import group_gap

    clusters = dp_means([[0.0], [0.2], [5.0], [0.4]], limit=4.0)
    assert clusters == [0, 0, 1, 0]  # 5 is further than 2 from the first cluster's mean
    assert BalancedSampler(clusters).probabilities() == {0: 0.5, 1: 0.5}
    wrong = [1, 0, 0, 0]
    assert group_gap(wrong, ["a", "a", "b", "b"]) == 0.5


def row_28():
    """One Epoch Is All You Need

    T3: `warpup.metrics.power_law`, `one_epoch`; any stage with as many steps as one epoch has. Dropout is 0 unless
    the model's config has some. Five tokens a parameter are what summaries give as its rule of thumb; models of
    today read more.
    """
    from warpup.metrics import one_epoch, power_law

    steps = [100.0, 200.0, 400.0, 800.0]
    fit = power_law(steps, [2 + 30 * step**-0.5 for step in steps])
    assert [round(value, 3) for value in fit[:3]] == [30, 0.5, 2]
    # 10 epochs of 2e6 tokens with 1e6 parameters cost 2e13: as 2e6 parameters that read 1e7 tokens once.
    assert one_epoch(1e6, 2e6, epochs=10, ratio=5) == (2e6, 1e7)


def row_30():
    """Continual Learning of Large Language Models: A Comprehensive Survey

    T4: `warpup.metrics.continual_scores`. A survey: nothing else is its own.
    """
    from warpup.metrics import continual_scores

    accuracy = [[0.9, 0.3], [0.7, 0.8]]  # row i: after task i
    found = continual_scores(accuracy, initial=[0.1, 0.1])
    # (.7 + .8) / 2, .7 - .9, .3 - .1, max(.9) - .7
    assert [round(value, 6) for value in found] == [0.75, -0.2, 0.2, 0.2]


def row_35():
    """FightLadder: A Benchmark for Competitive Multi-Agent Reinforcement Learning

    T4: `warpup.metrics.elo`, `exploitability`; `warpup.data.WeaknessSampler` as PFSP, with opponents as categories.
    The games are the paper's own.
    """
    from warpup.data import WeaknessSampler
    from warpup.metrics import elo, exploitability

    assert elo([1000, 1000, 1400], [(0, 1, 1.0)]) == [1016, 984, 1400]  # 32 (1 - 1/2)
    assert round(elo([1000, 1400], [(0, 1, 1.0)])[0], 6) == round(1000 + 32 * (1 - 1 / 11), 6)
    wins = [[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]]  # rock, paper, scissors
    assert exploitability(wins, [1, 0, 0]) == 0.5  # paper always beats rock
    assert abs(exploitability(wins, [1 / 3, 1 / 3, 1 / 3])) < 1e-12
    league = WeaknessSampler(["weak", "strong"], power=2, spread=0)
    league.observe([0, 1], correct=[[1, 0], [0, 0]])  # (1/2)^2 to 1
    assert league.probabilities() == {"weak": 0.2, "strong": 0.8}


def row_41():
    """Modeling of learning curves with applications to pos tagging

    T3: `warpup.metrics.enough`, `power_law`. The anchor at infinity is the bound that an asymptote has to keep.
    """
    from warpup.metrics import enough

    sizes = [1000.0 * n for n in range(1, 11)]
    accuracy = [95 - 300 * size**-0.5 for size in sizes]
    accuracy[3] -= 0.5  # the fit of four points is pulled off
    assert enough(sizes[:3], accuracy[:3], tau=0.1) is None
    stopped = enough(sizes, accuracy, tau=0.1)
    assert stopped is not None
    assert stopped > 5
    exact = [95 - 300 * size**-0.5 for size in sizes]
    assert enough(sizes, exact, tau=0.1) == 5  # the fits of 4 and of 5 are the same


def row_42():
    """On Teacher Hacking in Language Model Distillation

    T1: `warpup.divergence` of `kind` "forward", "reverse", "jeffreys" and "jsd"; the stage Distill with `online`,
    the share of the student's own sequences; `warpup.metrics.teacher_hacking`, `leaves_law`. Measure both distances
    on held-out prompts.
    """
    import math

    import torch

    from warpup import divergence
    from warpup.metrics import leaves_law, teacher_hacking

    teacher = torch.tensor([[math.log(3), 0.0]])  # (.75, .25), the student (.5, .5)
    kinds = ("forward", "reverse", "jeffreys")
    forward, reverse, both = (divergence(torch.zeros(1, 2), teacher, kind=kind) for kind in kinds)
    torch.testing.assert_close(forward, torch.tensor([0.75 * math.log(1.5) + 0.25 * math.log(0.5)]))
    torch.testing.assert_close(reverse, torch.tensor([0.5 * math.log(2 / 3) + 0.5 * math.log(2)]))
    torch.testing.assert_close(both, forward + reverse)
    steps, proxy, golden = [1, 2, 4, 8], [4.0, 2.0, 1.0, 0.5], [3.0, 2.0, 2.2, 2.6]
    assert teacher_hacking(steps, proxy, golden) == 2
    assert leaves_law(steps, [4.0, 2.0, 1.0, 1.0]) == 8  # 4 / step foretells .5


def row_48():
    """In-Context Learning Strategies Emerge Rationally

    T3: `warpup.metrics.memorizing`, `generalizing`, `strategy_weight`. Fit gamma, alpha and beta to a model's
    predictions by scipy's `minimize`.
    """
    import math

    import numpy as np

    from warpup.metrics import generalizing, memorizing, strategy_weight

    tasks = [[0.9, 0.1], [0.1, 0.9]]
    np.testing.assert_allclose(memorizing(tasks, [1, 0]), [0.82, 0.18])  # posterior (.9, .1)
    np.testing.assert_allclose(generalizing([2, 0]), [0.75, 0.25])
    weight = strategy_weight(100, 0.1, (9.0, 4.0), gamma=1.0, alpha=0.5, beta=0.5)
    assert math.isclose(weight, 1 / (1 + math.exp(-(10 * 0.1 - (3 - 2)))))  # one half


def row_50():
    """High-dimensional dynamics of generalization error in neural networks

    T4: `warpup.metrics.linear_dynamics`, the exact error of gradient flow on linear regression: a test of an
    optimizer's loop.
    """
    import math

    import numpy as np

    from warpup.metrics import linear_dynamics

    # One input with l = 1 at e^-t = 1/2: 1 * 1/4 of the signal, .04 * 1/4 of learned noise, and .04 of new noise
    np.testing.assert_allclose(linear_dynamics([1.0], math.log(2), noise=0.04), 0.25 + 0.01 + 0.04)
    np.testing.assert_allclose(linear_dynamics([0.0, 1.0], 1e9, noise=0.04), 0.5 + 0.02 + 0.04)  # nothing of l = 0


def row_51():
    """What needs to go right for an induction head? A mechanistic study of in-context learning circuits and their
    formation

    T3: `warpup.metrics.prefix_matching`; `clamped`, which holds a module's output at a pattern while a model
    trains.
    """
    import numpy as np
    import torch

    from warpup.metrics import clamped, prefix_matching

    attention = np.zeros((2, 4, 4))  # two heads
    attention[0, 2, 1] = attention[0, 3, 2] = 1.0  # behind where the token was the last time
    attention[1, :, 0] = 1.0
    assert prefix_matching(attention, [7, 8, 7, 8]).tolist() == [1.0, 0.0]
    head = torch.nn.Linear(1, 1)
    with clamped(head, torch.zeros_like):
        assert head(torch.ones(1)) == 0


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

    T2: `warpup.metrics.cheat_confidence`, `cheat_variance`, `cheat_interval`; trained by a Warmup on texts of a
    question and two independent answers.
    """
    import numpy as np

    from warpup.metrics import cheat_confidence, cheat_interval, cheat_variance

    p, p_again = 0.5, 0.75  # of an answer, and of the same one after it was seen
    assert cheat_variance(p, p_again) == 0.5 * 0.25
    np.testing.assert_allclose(cheat_confidence(p, p_again), 2 / 3)
    assert cheat_interval(p, p_again, error=0.5) == (0.0, 1.0)  # .5 +- sqrt(.125 / .5)
    assert cheat_interval(p, p, error=0.05) == (0.5, 0.5)  # it knows


def row_98():
    """A Domain-Agnostic Approach for Characterization of Lifelong Learning Systems

    T2: `warpup.metrics.terminal`, `maintenance`, `transfer`, `relative_performance`, `sample_efficiency`,
    `recovery`.
    """
    from warpup import metrics

    assert metrics.terminal([0.0] * 18 + [0.5, 1.0]) == 0.75  # the last tenth
    assert round(metrics.maintenance([0.8, 0.7, 0.6]), 6) == -0.15
    assert round(metrics.transfer(before=0.2, after=0.6), 6) == 0.5  # (.6 - .2) / (.6 + .2)
    assert metrics.relative_performance([0.5, 1.0], [1.0, 1.0, 1.0]) == 0.75
    assert metrics.sample_efficiency([0.4, 0.8], [0.5, 0.9, 1.0, 1.0]) == 0.8 * 3 / 2
    assert metrics.recovery([6.0, 4.0, 2.0]) == 2.0


def row_99():
    """Continual evaluation for lifelong learning: Identifying the stability gap

    T2: `warpup.metrics.stability_gap` of accuracies that are measured at every step. The published plug-ins measure
    fewer tasks.
    """
    from warpup.metrics import stability_gap

    first, second = [0.5, 0.9, 0.6, 0.8], [0.1, 0.2, 0.5, 0.8]  # the first task ends at evaluation 1
    found = stability_gap([first, second], ends=[1, 3], window=2)
    assert found.min_acc == 0.6
    assert round(found.wc_acc, 6) == 0.7  # .8 / 2 + (1 - 1/2) .6
    assert round(found.wp, 6) == 0.35  # (.4 + .3) / 2
