from .errors import Interrupted, TrainError, UsageError
from .evaluation import Evaluation, evaluate
from .log import ProgressBar
from .models import load_model, newest_model
from .recipe import Recipe
from .rlvr import RLVR
from .rollouts import Rollouts, rollout
from .run import HeldOut
from .warmup import Warmup

__all__ = [
    "RLVR",
    "Evaluation",
    "HeldOut",
    "Interrupted",
    "ProgressBar",
    "Recipe",
    "Rollouts",
    "TrainError",
    "UsageError",
    "Warmup",
    "evaluate",
    "load_model",
    "newest_model",
    "rollout",
]
