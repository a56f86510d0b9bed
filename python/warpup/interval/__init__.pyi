from .box_sums import BoxSums
from .network.bound import bound, margin_loss, margins
from .network.cnn7 import cnn7
from .network.crown import crown_ibp_loss, crown_margins
from .network.ibp_warmup import epsilon_schedule, ibp_init_, kappa_schedule, relu_balance_loss, tightness_loss
from .network.nodes import UnsupportedLayer
from .network.rules import Box, Refusal, rule
from .network.sabr import pgd, sabr_box
from .network.taps import taps_loss
from .network.walk import Walk

__all__ = [
    "Box",
    "BoxSums",
    "Refusal",
    "UnsupportedLayer",
    "Walk",
    "bound",
    "cnn7",
    "crown_ibp_loss",
    "crown_margins",
    "epsilon_schedule",
    "ibp_init_",
    "kappa_schedule",
    "margin_loss",
    "margins",
    "pgd",
    "relu_balance_loss",
    "rule",
    "sabr_box",
    "taps_loss",
    "tightness_loss",
]
