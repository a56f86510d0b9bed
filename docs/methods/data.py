"""Data: generators and windows."""


def row_17():
    """Unveiling the Mechanisms of Explicit CoT Training: How Chain-of-Thought Enhances Reasoning Generalization

    T3: not yet.
    """


def row_82():
    """Self-supervised Preference Optimization: Enhance Your Language Model with Preference Degree Awareness

    T2: not yet.
    """


def row_84():
    """Transformers Can Navigate Mazes With Multi-Step Prediction

    T2: not yet.
    """


def row_94():
    """Require Process Control? LSTMc is all you need!

    T4: not yet.
    """
