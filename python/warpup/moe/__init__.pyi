from . import metrics
from .layer import DeepSeekMoE

__all__ = ["DeepSeekMoE", "metrics"]
