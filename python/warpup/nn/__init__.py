"""Modules on top of the operators."""

from .cnn import cnn7

__all__ = ["cnn7"]
