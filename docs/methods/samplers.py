"""Samplers: which examples come next."""


def row_11():
    """Cyclical Curriculum Learning

    T3: `warpup.data.CyclicalSampler`; `sampler = "cyclical:score=confidence"`. Sizes go up and down in cycles; what
    is in an epoch is drawn without replacement by a score, such as the probability that a plain model gives the
    true answer.
    """
    from warpup.data import CyclicalSampler
    from warpup.data.samplers import cyclical_share

    assert [cyclical_share(epoch, 0.25, 0.5, 1.0) for epoch in range(6)] == [0.25, 0.5, 1.0, 0.5, 0.25, 0.5]
    sampler = CyclicalSampler(8, scores=[1, 1, 0, 0, 0, 0, 0, 0])
    assert sorted(sampler.next(2)) == [0, 1]  # an epoch of .25 * 8


def row_13():
    """Catastrophic Interference is Mitigated in Naturalistic Power-Law Learning Environments

    T3: `warpup.data.RecencySampler`; `sampler = "recency:per_task=1000,d=1"`, with `decay=exponential` for the
    comparison.
    """
    from warpup.data import RecencySampler

    tasks = ["first", "second", "third"]
    sampler = RecencySampler(tasks, per_task=1, d=1)
    sampler.next(2)  # the third is new now; weights 1/3, 1/2, 1
    assert [round(p, 6) for p in sampler.probabilities().values()] == [round(w / 11, 6) for w in (2, 3, 6)]


def row_25():
    """When Do Curricula Work in Federated Learning?

    T3: `warpup.data.PacedSampler`; `sampler = "paced:score=loss,order=easy"`, or `anti`, `random`. Clients are
    drawn by their loss in the same way, with one example a client; their weights are averaged by
    `warpup.continual.average`.
    """
    from warpup.data import PacedSampler

    losses = [3.0, 1.0, 2.0, 4.0]
    easy, anti = (PacedSampler(4, scores=losses, order=order, start=0.5, epochs=2) for order in ("easy", "anti"))
    assert sorted(easy.next(2)) == [1, 2]
    assert sorted(anti.next(2)) == [0, 3]
    assert sorted(easy.next(3)) == [0, 1, 2]  # epoch 1 of 2: a share of .5 + .5 / 2


def row_27():
    """Self-Evolving Curriculum for LLM Reasoning

    T2: `warpup.data.SECSampler`; `sampler = "sec"` of RLVR.
    """
    from warpup.data import SECSampler

    sampler = SECSampler(["easy", "hard"], alpha=0.5, tau=1.0)
    sampler.observe([0, 1], advantages=[[1.0, -1.0], [0.0, 0.0]])  # mean |A|: 1 and 0
    assert sampler.q == [0.5, 0.0]
    assert round(sampler.probabilities()["easy"], 4) == 0.6225  # 1 / (1 + e^-.5)


def row_32():
    """Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning

    T3: `warpup.data.RS2Sampler`; `sampler = "rs2:share=.1"`, with `replacement=true` for the other form. Learning
    rate schedules are in steps here, so they stretch by themselves.
    """
    from warpup.data import RS2Sampler

    sampler = RS2Sampler(10, share=0.3)  # floor(.3 * 10) = 3 an epoch, floor(10 / 3) = 3 epochs before any comes again
    assert len(set(sampler.next(9))) == 9


def row_34():
    """DUMP: Automated Distribution-Level Curriculum Learning for RL-based LLM Post-training

    T2: `warpup.data.DUMPSampler`; `sampler = "dump"` of RLVR.
    """
    import math

    from warpup.data import DUMPSampler

    sampler = DUMPSampler(["a", "b"], tau=0.1)
    sampler.observe([0, 0, 1], advantages=[1.0, 0.0, 0.5])  # mean |A| .5 and .5; 2 and 1 observed
    a, b = 0.5 + math.sqrt(2 * math.log(4) / 3), 0.5 + math.sqrt(2 * math.log(4) / 2)
    assert math.isclose(sampler.probabilities()["a"], 1 / (1 + math.exp((b - a) / 0.1)))


def row_59():
    """Aioli: A Unified Optimization Framework for Language Model Data Mixing

    T2: `warpup.data.AioliSampler`; `sampler = "aioli:every=250"` of Warmup; the two formulas alone are `mixing_law`
    and `reweighted` of `warpup.data.samplers`.
    """
    import math

    import numpy as np

    from warpup.data.samplers import mixing_law, reweighted

    shares = [[0.75, 0.25], [0.25, 0.75]]  # row j: the mixture of trial j
    gains = [[1.5, 0.5], [1.5, 0.5]]  # row i: how far the loss of part i fell in each trial
    law = mixing_law(shares, gains)
    np.testing.assert_allclose(law, [[2, 0], [2, 0]], atol=1e-12)  # .75 * 2 = 1.5, .25 * 2 = .5
    weights = reweighted([0.5, 0.5], law, eta=0.2)
    assert math.isclose(weights[0], math.exp(0.8) / (math.exp(0.8) + 1))  # .2 * (2 + 2)


def row_67():
    """EnvGen: Generating and Adapting Environments via LLMs for Training Embodied Agents

    T4: `warpup.data.WeaknessSampler`; `sampler = "weakness:power=1,spread=.1"` of RLVR. Environments are written by
    a language model in the paper; here they are categories of the data.
    """
    from warpup.data import WeaknessSampler

    sampler = WeaknessSampler(["jump", "swim"], spread=0.2)
    sampler.observe([0, 1], correct=[[1, 1, 1, 0], [0, 0, 0, 1]])
    # .2 / 2 + .8 * (1 - 3/4) / (1/4 + 3/4)
    assert round(sampler.probabilities()["jump"], 6) == 0.3


def row_79():
    """Do Your Best and Get Enough Rest for Continual Learning

    T3: `warpup.data.ViewsSampler`; `sampler = "views:views=4"`; `warpup.divergence` of each view's logits from the
    first one's, which gets no gradient.
    """
    import math

    import torch

    from warpup import divergence
    from warpup.data import ViewsSampler

    sampler = ViewsSampler(6, views=2)
    epochs = [sampler.next(6), sampler.next(6)]
    assert all(epoch[::2] == epoch[1::2] for epoch in epochs)  # each example twice in a row
    assert sorted({*epochs[0], *epochs[1]}) == list(range(6))
    first = torch.tensor([[math.log(3), 0.0]])  # (.75, .25)
    found = divergence(torch.zeros(1, 2), first)
    torch.testing.assert_close(found, torch.tensor([0.75 * math.log(1.5) + 0.25 * math.log(0.5)]))
