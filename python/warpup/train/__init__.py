"""Two-stage post-training of any `transformers` causal LM: warm-up, then reinforcement with verifiable rewards.

recipe = Recipe([Warmup(data=chains, steps=500, lr=1e-3), RLVR(data=puzzles, reward=verify, lr=1e-4)])
recipe.run(model, tokenizer, "runs/first")
"""

from .certify import CertifiedTraining
from .certify_data import Images, load_images
from .errors import Interrupted, TrainError, UsageError
from .evaluate import Evaluation, evaluate
from .log import ProgressBar
from .recipe import Recipe, load_model, newest_model
from .rlvr import RLVR
from .rollout import Rollouts, rollout
from .run import HeldOut
from .warmup import Warmup

__all__ = [
    "RLVR",
    "CertifiedTraining",
    "Evaluation",
    "HeldOut",
    "Images",
    "Interrupted",
    "ProgressBar",
    "Recipe",
    "Rollouts",
    "TrainError",
    "UsageError",
    "Warmup",
    "evaluate",
    "load_images",
    "load_model",
    "newest_model",
    "rollout",
]
