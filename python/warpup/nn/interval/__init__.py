"""Interval bound propagation through ordinary modules, and certified training with a short warm-up.

center, radius = bound(module, x, eps * torch.ones_like(x))   # every output over the box
verified = (margins(module, x, radius, labels) > 0).all(1)    # no input in the box changes the class
loss = margin_loss(module, x, radius, labels, clean=x)        # trains that
"""

from warpup.ops.interval_norm import BoxSums

from .bound import Walk, bound, margin_loss, margins
from .crown import crown_ibp_loss, crown_margins
from .graph import UnsupportedLayer
from .layers import Box, Refusal, rule
from .sabr import pgd, sabr_box
from .warmup import epsilon_schedule, ibp_init_, kappa_schedule, relu_balance_loss, tightness_loss

__all__ = [
    "Box",
    "BoxSums",
    "Refusal",
    "UnsupportedLayer",
    "Walk",
    "bound",
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
    "tightness_loss",
]
