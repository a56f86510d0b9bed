"""Modules on top of the operators."""

from warpup.nn.moe import DeepSeekMoE

__all__ = ["DeepSeekMoE"]
