"""Modules on top of the operators."""

from .cnn import cnn7
from .moe import DeepSeekMoE

__all__ = ["DeepSeekMoE", "cnn7"]
