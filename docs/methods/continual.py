"""Continual learning and test-time adaptation."""


def row_19():
    """TAME: Task Agnostic Continual Learning using Multiple Experts

    T3: not yet.
    """


def row_24():
    """Improved Test-Time Adaptation for Domain Generalization

    T3: not yet.
    """


def row_29():
    """HPCR: Holistic Proxy-based Contrastive Replay for Online Continual Learning

    T2: not yet.
    """


def row_31():
    """Continual Model-Based Reinforcement Learning with Hypernetworks

    T3: not yet.
    """


def row_57():
    """Continual Learning with Dynamic Sparse Training: Exploring Algorithms for Effective Model Updates

    T3: not yet.
    """


def row_61():
    """Meta-DMoE: Adapting to Domain Shift by Meta-Distillation from Mixture-of-Experts

    T3: not yet.
    """


def row_63():
    """Parameter-Selective Continual Test-Time Adaptation

    T2: not yet.
    """


def row_66():
    """Language Models Meet World Models: Embodied Experiences Enhance Language Models

    T2: not yet.
    """


def row_69():
    """Pre-training Language Model as a Multi-perspective Course Learner

    T3: not yet.
    """


def row_70():
    """A Practitioner's Guide to Continual Multimodal Pretraining

    T3: not yet.
    """


def row_77():
    """Robust Mean Teacher for Continual and Gradual Test-Time Adaptation

    T2: not yet.
    """


def row_91():
    """CELLM: An Efficient Communication in Large Language Models Training for Federated Learning

    T3: not yet.
    """
