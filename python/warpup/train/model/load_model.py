"""Saved models: the newest of a run, and loading one with its tokenizer."""

import re
import sys
from pathlib import Path

import torch

from .. import checkpoint
from ..errors import TrainError
from ..files import check_folder, is_model, read_table
from ..run_config import seed_everything
from ..shard_files import tensors_in_shards
from .lora import add_adapters, add_before_rounding, check_loaded, describe_reach, is_adapted, peft
from .precision import autocast_dtype, in_bfloat16
from .tokens import check_tokenizer


def newest_model(out: str | Path) -> Path:
    """Folder of a run's newest weights: the finished model, else the newest checkpoint. TrainError if there is none.

    A plain model folder is its own newest model.
    """
    out = Path(out)
    check_folder(out)
    if is_model(out / "model"):
        return out / "model"
    stages = sorted((int(f.name.partition("-")[0]), f) for f in out.iterdir() if re.match(r"\d+-", f.name))
    for _, folder in reversed(stages):
        if found := checkpoint.latest(folder):
            return found
    if is_model(out) and not (out / "metrics.jsonl").exists():
        return out
    raise TrainError(f"{out} holds no model and no checkpoint")


def load_model(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
):
    """(model, tokenizer) of a folder that `transformers` or, for adapters, `peft` saved. `attention` is transformers'
    attn_implementation. TrainError naming what is missing or damaged, in a checkpoint by its checksums."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The whole path: adapters remember the model that they belong to, and are loaded from other working folders too.
    folder, adapters = Path(folder).resolve(), None
    if (folder / "adapter_config.json").is_file():
        adapters, config = folder, read_table(folder / "adapter_config.json", "base_model_name_or_path")
        check_loaded(str(adapters), config)
        folder = Path(config["base_model_name_or_path"] or "")
        if not (folder / "config.json").is_file():
            raise TrainError(
                f"{adapters} holds adapters of the model {folder}, which is not there any more: put it back, or write "
                "where it is into base_model_name_or_path of adapter_config.json"
            )
    if tensors_in_shards(folder):
        raise TrainError(
            f"{folder} holds the shards of a run with fsdp that is not finished, not a model: the same command goes on "
            "with it, also in one process, and writes the folder model at its end"
        )
    if not (folder / "config.json").is_file():
        raise TrainError(f"{folder} is not a saved model: it has no config.json")
    for part in filter(None, (folder, adapters)):
        checkpoint.check_saved_model(part)
    options = {} if attention is None else {"attn_implementation": attention}
    model = checkpoint.load_whole(AutoModelForCausalLM, folder, dtype=dtype, **options)
    there = any((adapters or folder).glob("tokenizer*"))
    hint = "" if there else " (a model's tokenizer is saved beside it: tokenizer.save_pretrained(FOLDER))"
    with checkpoint.loading(adapters or folder, "tokenizer", hint):
        tokenizer = AutoTokenizer.from_pretrained(adapters or folder)
    with checkpoint.loading(adapters or folder):
        model = use_experts(model.to(device))
        if adapters:
            model = add_before_rounding(peft().PeftModel.from_pretrained(model, adapters, is_trainable=True))
            checkpoint.load_adapters(model, adapters, cast=True)
    check_tokenizer(model, tokenizer)
    return model, tokenizer


def device_of(name: str) -> str:
    """The device that a setting names; "auto" is a GPU if there is one. TrainError where torch has no such device."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TrainError(f"device: torch has no {name!r} here: {str(error).splitlines()[0]}") from error
    return name


def start_model(config):
    """(model, tokenizer) that a `TrainConfig` begins with: on its device, with its adapters if it asks for some."""
    model, tokenizer = load_model(config.model, device=device_of(config.device), attention=config.attention)
    if config.lora.r:
        if is_adapted(model):
            raise TrainError(f"lora: {config.model} has adapters already, which are trained on; leave lora out")
        # What they begin with is drawn by the run's seed. Frozen weights never change, so under bfloat16 they are held
        # in it: half the memory, and nothing to cast at every step.
        seed_everything(config.seed)
        if autocast_dtype(config.dtype, model):
            in_bfloat16(model)
        model = add_adapters(model, config.lora)
        print(f"lora: {describe_reach(model)} of the weights", file=sys.stderr)
    elif config.weights == "bfloat16":
        if is_adapted(model):
            raise TrainError(f"weights: {config.model} has adapters, which stay float32; leave it out")
        in_bfloat16(model)
    return model, tokenizer


def use_experts(model):
    """The model, its routed experts, if it has some that transformers lets us replace, computed by `moe_experts`."""
    if getattr(model, "_can_set_experts_implementation", bool)():
        import warpup.integrations.transformers  # noqa: F401  registers the implementation

        model.set_experts_implementation("warpup")
    return model
