"""Layers and how a model is put together."""


def row_3():
    """EchoVideo: Identity-Preserving Human Video Generation by Multimodal Feature Fusion

    T4: not yet.
    """


def row_40():
    """Exploring Learngene via Stage-wise Weight Sharing for Initializing Variable-sized Models

    T3: not yet.
    """


def row_64():
    """Deep Model Assembling

    T3: not yet.
    """


def row_102():
    """Liquid Neural Network-based Adaptive Learning vs. Incremental Learning for Link Load Prediction amid Concept
    Drift due to Network Failures

    T3: not yet.
    """
