"""Advantage: what a completion, a role, a segment or an edge of a tree is credited with."""


def row_1():
    """Warm Up Before You Train: Unlocking General Reasoning in Resource-Constrained Settings

    T2: `warpup.train.Recipe([Warmup(...), RLVR(...)])` with `warpup.data.knights_and_knaves`; the command `warpup
    train`. The second stage's advantage is reward - mean of the group (the authors' code leaves the deviation out),
    one update a batch, no KL: RLVR's defaults.
    """
    import torch

    from warpup.advantage import dr_grpo
    from warpup.data import knights_and_knaves, solutions

    assert all(len(solutions(puzzle.statements)) == 1 for puzzle in knights_and_knaves(20))
    rewards = torch.tensor([2.0, -0.5, -0.5, 2.0])  # their mean is .75
    assert dr_grpo(rewards, 4).tolist() == [1.25, -1.25, -1.25, 1.25]


def row_20():
    """Reinforcement Fine-Tuning Naturally Mitigates Forgetting in Continual Post-Training

    T2: `warpup.data.PassRateSampler` with the defaults, which leaves out what was never solved; `sampler =
    "pass_rate"` of RLVR with any group advantage. The forgetting is read off `warpup.metrics.continual_scores`.
    """
    import torch

    from warpup.advantage import rloo
    from warpup.data import PassRateSampler

    sampler = PassRateSampler(3)
    first = sampler.next(3)
    rewards = {0: [0.0, 0.0], 1: [1.0, 0.0], 2: [1.0, 1.0]}
    sampler.observe(first, rewards=[rewards[i] for i in first])
    assert sorted(sampler.next(2)) == [1, 2]
    assert rloo(torch.tensor(rewards[1]), 2).tolist() == [1.0, -1.0]


def row_21():
    """A Practical Two-Stage Recipe for Mathematical LLMs: Maximizing Accuracy with SFT and Efficiency with
    Reinforcement Learning

    T2: `warpup.rewards:cosine_length` behind a Warmup of several epochs. Its published shape: right answers fall
    from 1 to .1 along half a cosine, wrong ones rise from -1 to -.1; the paper counts 30,000 characters, here
    `max_length` counts tokens.
    """
    from warpup.rewards import cosine_length

    published = {"max_length": 100, "check": "warpup.rewards:number", "correct": (1.0, 0.1), "wrong": (-1.0, -0.1)}

    def paid(completion, length):
        grade = cosine_length(completion, {"answer": "4"}, length=length, finished=True, **published)
        return round(grade.reward, 6)

    assert [paid("4", 0), paid("4", 50), paid("4", 100)] == [1.0, 0.55, 0.1]
    assert [paid("5", 0), paid("5", 50), paid("5", 100)] == [-1.0, -0.55, -0.1]


def row_23():
    """SPIRAL: Self-Play on Zero-Sum Games Incentivizes Reasoning via Multi-Agent Multi-Turn Reinforcement Learning

    T1: `warpup.role_advantage`; `credit = "role"` of RLVR. The baseline is read before its update and nothing is
    divided; for one baseline a game and role, number the pairs.
    """
    import torch

    from warpup import role_advantage

    rewards, roles = torch.tensor([1.0, -1.0, 1.0]), torch.tensor([0, 1, 0])
    advantages, baselines = role_advantage(rewards, roles, torch.zeros(2), decay=0.95)
    torch.testing.assert_close(advantages, torch.tensor([1.0, -1.0, 0.95]))  # role 0 is at .05 when it comes again
    torch.testing.assert_close(baselines, torch.tensor([0.0975, -0.05]))  # .95 * .05 + .05 * 1


def row_92():
    """RL on Incorrect Synthetic Data Scales the Efficiency of LLM Math Reasoning by Eight-Fold

    T2: `warpup.segment_advantage` with the values of the steps' beginnings; step-level DPO as in row 68. Q is the
    share of continuations from a prefix that succeed; a step is worth what it changes of that.
    """
    import torch

    from warpup import segment_advantage

    # Three steps of one token each: half of the continuations succeed at first, then a quarter, then all; it is right.
    values = torch.tensor([[0.5, 0.25, 1.0]])
    found = segment_advantage(torch.ones(1), values, torch.full((1, 3), 0.1), torch.ones(1, 3), every=1)
    assert found.advantages.tolist() == [[-0.25, 0.75, 0.0]]  # the first step is the pit


def row_101():
    """Segment Policy Optimization: Effective Segment-Level Credit Assignment in RL for Large Language Models

    T1: `warpup.segment_advantage`, `segment_ids`, `tree_advantage`; `advantage = "segment"` or `"tree"` of RLVR.
    """
    import torch

    from warpup import segment_advantage, tree_advantage

    probs, values = torch.tensor([[0.5, 0.99, 0.5, 0.95]]), torch.tensor([[0.25, 0.75]])
    found = segment_advantage(torch.ones(1), values, probs, torch.ones(1, 4), threshold=0.9, every=1)
    assert found.advantages.tolist() == [[0.5, 0.5, 0.25, 0.25]]  # .75 - .25, then the reward - .75
    assert found.loss_mask.tolist() == [[True, False, True, False]]  # sure tokens carry no loss
    tree = tree_advantage(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([-1, 0, 0]))
    assert tree.advantages.tolist() == [0.0, 0.5, -0.5]
