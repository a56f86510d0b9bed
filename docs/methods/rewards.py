"""Rewards: what a completion is paid, by its group, its length, its turns."""


def row_6():
    """AdaCtrl: Towards Adaptive and Controllable Reasoning via Difficulty-Aware Budgeting

    T2: `warpup.rewards:difficulty`. The length counts against the longest completion of the group, and only where
    the tag says easy and the answer is right. Threshold and weights are options; the paper's were not verified.
    """
    from warpup.rewards import difficulty

    texts = ["[Easy] 4", "[Easy] 4", "[Hard] 4", "5"]  # three of four are right: easy
    grades = difficulty(texts, [{"answer": "4"}] * 4, [2, 4, 4, 1], length_weight=1.0, tag_weight=0.5)
    # right +-1, length (1 + cos(pi L / 4)) / 2, half of the tag's 1, 0 or -1
    assert [round(grade.reward, 6) for grade in grades] == [1 + 0.5 + 0.5, 1 + 0 + 0.5, 1, -1 - 0.5]


def row_9():
    """Mobile-R1: Towards Interactive Reinforcement Learning for VLM-Based Mobile Agent via Task-Level Rewards

    T2: Warmup, then RLVR with an environment, `credit = "turn"`, then the same with `credit = "episode"`. Only the
    granularity of the reward changes; what the environment says carries no loss. The phone is the paper's own.
    """
    import torch

    from warpup.advantage import dr_grpo
    from warpup.train.sampling.episodes import turn_advantages

    rewards = torch.tensor([[1.0, 0.0], [0.0, 0.0]])  # two episodes of two turns
    turn = torch.tensor([[0, -1, 1], [0, -1, 1]])  # of each token; -1: the environment's
    assert turn_advantages(rewards, turn, lambda r: dr_grpo(r, 2)).tolist() == [[0.5, 0, 0], [-0.5, 0, 0]]
    assert dr_grpo(rewards.sum(1), 2).tolist() == [0.5, -0.5]  # of the whole trajectory, to all of its tokens


def row_49():
    """SPA-RL: Reinforcing LLM Agents via Stepwise Progress Attribution

    T2: `loss = "progress"` of the stage StepReward, then RLVR with `reward =
    ["warpup.rewards:reward_model(folder=..., credit='step')", ...]`, a reward for grounded actions beside it, their
    `reward_weights`, and `advantage = "gae"`. In the released code a value of the whole trajectory stands in the
    place of the steps'; this is the paper's redistribution.
    """
    import torch

    from warpup.train import StepReward
    from warpup.train.model.batch import Batch

    given = torch.tensor([0.25, 0.5, 1.0])  # a head's numbers behind two steps of one solution and one of another
    targets = torch.tensor([[7, 7], [7, -100]])
    batch = Batch(targets, targets, targets, rows=[0, 1])
    loss, _ = StepReward(loss="progress").of_progress(given, batch, labels=[[1.0], [0.0]], count=2)
    assert loss == ((0.25 + 0.5 - 1) ** 2 + 1**2) / 2


def row_54():
    """Training Language Models to Self-Correct via Reinforcement Learning

    T2: RLVR with `environment = "warpup.environments:Revise(bonus=10)"`, `credit = "turn"` and `kl_coef`; before it
    a stage with `first=0`. The first stage's KL is to the first answers alone in the paper; here `kl_coef` holds
    both.
    """
    from warpup.environments import Revise

    def played(*answers, **options):
        game = Revise("warpup.rewards:number", **options)
        game.reset({"prompt": "2 + 2 =", "answer": "4"})
        return [game.step(answer).reward for answer in answers]

    assert played("5", "4", bonus=2) == [0, 1 + 2 * (1 - 0)]
    assert played("4", "5", bonus=2) == [1, 0 + 2 * (0 - 1)]
    assert played("4", "4", bonus=2, first=0) == [0, 1]
