"""Saved models: the newest of a run, and loading one with its tokenizer."""

from pathlib import Path

import torch

from . import checkpoint
from .batch import check_tokenizer
from .errors import TrainError


def newest_model(out: str | Path) -> Path:
    """Folder of a run's newest weights: the finished model, else the newest checkpoint. TrainError if there is none.

    A plain model folder is its own newest model.
    """
    out = Path(out)
    if not out.is_dir():
        raise TrainError(f"no folder {out}")
    if (out / "model" / "config.json").is_file():
        return out / "model"
    found = [checkpoint.latest(folder) for folder in sorted(out.iterdir(), reverse=True) if folder.is_dir()]
    found = [path for path in found if path]
    if found:
        return found[0]
    if (out / "config.json").is_file() and not (out / "metrics.jsonl").exists():
        return out
    raise TrainError(f"{out} holds no model and no checkpoint")


def load_model(folder: str | Path):
    """(model, tokenizer) of a folder that `transformers` saved; float32. TrainError naming what is missing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise TrainError(f"{folder} is not a saved model: it has no config.json")
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise TrainError(f"cannot load the model in {folder}: {str(error).strip().splitlines()[0]}") from error
    check_tokenizer(model, tokenizer)
    return use_experts(model), tokenizer


def use_experts(model):
    """The model, its routed experts, if it has some that transformers lets us replace, computed by `moe_experts`."""
    if getattr(model, "_can_set_experts_implementation", bool)():
        import warpup.integrations.transformers  # noqa: F401  registers the implementation

        model.set_experts_implementation("warpup")
    return model
