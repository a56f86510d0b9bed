"""Optimizers, schedules and gradients."""


def row_33():
    """Train longer, generalize better: closing the generalization gap in large batch training of neural networks

    T3: not yet.
    """


def row_38():
    """OctoThinker: Mid-training Incentivizes Reinforcement Learning Scaling

    T3: not yet.
    """


def row_55():
    """Boosting Multi-modal Model Performance with Adaptive Gradient Modulation

    T3: not yet.
    """


def row_58():
    """Small-scale proxies for large-scale Transformer training instabilities

    T2: not yet.
    """


def row_75():
    """Fast & Slow Learning: Incorporating Synthetic Gradients in Neural Memory Controllers

    T3: not yet.
    """


def row_93():
    """Distraction is All You Need for Fairness

    T3: not yet.
    """
