"""Synthesis: small data sets that train as large ones do."""


def row_39():
    """Dataset Condensation with Contrastive Signals

    T3: not yet.
    """


def row_74():
    """Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert Trajectories

    T3: not yet.
    """
