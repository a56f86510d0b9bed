from .errors import Interrupted, TrainError, UsageError
from .evaluation import Evaluation, evaluate
from .log import ProgressBar
from .model.load_model import load_model, newest_model
from .recipe import Recipe, Stage
from .run import HeldOut
from .sampling.episodes import Environment, Turn
from .sampling.rollouts import Rollouts, rollout
from .settings import LoRA
from .stages.distill import Distill
from .stages.preference import Preference
from .stages.rlvr import RLVR
from .stages.step_reward import StepReward
from .stages.warmup import Warmup

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
    "StepReward",
    "TrainError",
    "Turn",
    "UsageError",
    "Warmup",
    "evaluate",
    "load_model",
    "newest_model",
    "rollout",
]
