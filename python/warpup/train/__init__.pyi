from .distill import Distill
from .episodes import Environment, Turn
from .errors import Interrupted, TrainError, UsageError
from .evaluation import Evaluation, evaluate
from .log import ProgressBar
from .lora import LoRA
from .models import load_model, newest_model
from .preference import Preference
from .recipe import Recipe, Stage
from .rlvr import RLVR
from .rollouts import Rollouts, rollout
from .run import HeldOut
from .warmup import Warmup

__all__ = [
    "RLVR",
    "Distill",
    "Environment",
    "Evaluation",
    "HeldOut",
    "Interrupted",
    "LoRA",
    "Preference",
    "ProgressBar",
    "Recipe",
    "Rollouts",
    "Stage",
    "TrainError",
    "Turn",
    "UsageError",
    "Warmup",
    "evaluate",
    "load_model",
    "newest_model",
    "rollout",
]
