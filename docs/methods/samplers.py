"""Samplers: which examples come next."""


def row_11():
    """Cyclical Curriculum Learning

    T3: not yet.
    """


def row_13():
    """Catastrophic Interference is Mitigated in Naturalistic Power-Law Learning Environments

    T3: not yet.
    """


def row_25():
    """When Do Curricula Work in Federated Learning?

    T3: not yet.
    """


def row_27():
    """Self-Evolving Curriculum for LLM Reasoning

    T2: `warpup.data.SECSampler`; `sampler = "sec"` of RLVR.
    """
    from warpup.data import SECSampler

    sampler = SECSampler(["easy", "hard"], alpha=0.5, tau=1.0)
    sampler.observe([0, 1], [[1.0, -1.0], [0.0, 0.0]])  # mean |A|: 1 and 0
    assert sampler.q == [0.5, 0.0]
    assert round(sampler.probabilities()["easy"], 4) == 0.6225  # 1 / (1 + e^-.5)


def row_32():
    """Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning

    T3: not yet.
    """


def row_34():
    """DUMP: Automated Distribution-Level Curriculum Learning for RL-based LLM Post-training

    T2: `warpup.data.DUMPSampler`; `sampler = "dump"` of RLVR.
    """
    import math

    from warpup.data import DUMPSampler

    sampler = DUMPSampler(["a", "b"], tau=0.1)
    sampler.observe([0, 0, 1], [1.0, 0.0, 0.5])  # mean |A| .5 and .5; 2 and 1 observed
    a, b = 0.5 + math.sqrt(2 * math.log(4) / 3), 0.5 + math.sqrt(2 * math.log(4) / 2)
    assert math.isclose(sampler.probabilities()["a"], 1 / (1 + math.exp((b - a) / 0.1)))


def row_59():
    """Aioli: A Unified Optimization Framework for Language Model Data Mixing

    T2: not yet.
    """


def row_67():
    """EnvGen: Generating and Adapting Environments via LLMs for Training Embodied Agents

    T4: not yet.
    """


def row_79():
    """Do Your Best and Get Enough Rest for Continual Learning

    T3: not yet.
    """
