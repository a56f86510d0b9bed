"""Which training examples come next: uniformly, or by a curriculum.

`ArmSampler`s draw a category first, then the next example of it; `SubsetSampler`s take some of the examples each epoch.
A name with options (`make_sampler`) stands for one in a config, and an object of your own for any `Sampler`.
"""

from .aioli import AioliSampler, mixing_law, reweighted
from .arms import ArmSampler, BalancedSampler, DUMPSampler, RecencySampler, SECSampler, WeaknessSampler
from .names import ARMS, SAMPLERS, make_sampler, parse_sampler
from .protocol import Sampler, UniformSampler
from .subsets import (
    CyclicalSampler,
    PacedSampler,
    PassRateSampler,
    RS2Sampler,
    SubsetSampler,
    ViewsSampler,
    WeightedSampler,
    cyclical_share,
)

__all__ = [
    "ARMS",
    "SAMPLERS",
    "AioliSampler",
    "ArmSampler",
    "BalancedSampler",
    "CyclicalSampler",
    "DUMPSampler",
    "PacedSampler",
    "PassRateSampler",
    "RS2Sampler",
    "RecencySampler",
    "SECSampler",
    "Sampler",
    "SubsetSampler",
    "UniformSampler",
    "ViewsSampler",
    "WeaknessSampler",
    "WeightedSampler",
    "cyclical_share",
    "make_sampler",
    "mixing_law",
    "parse_sampler",
    "reweighted",
]
