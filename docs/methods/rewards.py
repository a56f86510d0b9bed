"""Rewards: what a completion is paid, by its group, its length, its turns."""


def row_6():
    """AdaCtrl: Towards Adaptive and Controllable Reasoning via Difficulty-Aware Budgeting

    T2: not yet.
    """


def row_9():
    """Mobile-R1: Towards Interactive Reinforcement Learning for VLM-Based Mobile Agent via Task-Level Rewards

    T2: not yet.
    """


def row_49():
    """SPA-RL: Reinforcing LLM Agents via Stepwise Progress Attribution

    T2: not yet.
    """


def row_54():
    """Training Language Models to Self-Correct via Reinforcement Learning

    T2: not yet.
    """
