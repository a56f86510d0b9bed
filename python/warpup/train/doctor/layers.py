"""Checks of the model's layers: packing, attention, the output layer, adapters."""

import warnings
from collections.abc import Iterator

import torch
from transformers import AutoModelForCausalLM

from ..errors import TrainError
from ..model.batch import collate
from ..model.heads import Head
from ..model.lora import add_adapters, describe_reach, reach, tied_names
from ..model.packing import ROUNDING, check_packing
from ..settings import LoRA
from .findings import Patient, Result, check, fault, fine, note


@check
def packing(patient: Patient) -> Iterator[Result]:
    """whether the second of two sequences in one row gets the logits that it gets alone"""
    try:
        check_packing(patient.model, "warmup")
    except TrainError as error:
        found, change = str(error).removeprefix("warmup.packing: ").rsplit("; ", 1)
        asked = any(patient.settings("packing"))
        yield fault(found, change) if asked else note(found, "leave packing off, as it is")
    else:
        yield fine("it does: rows may be packed (warmup.packing)")


@check
@torch.no_grad()
def attention(patient: Patient) -> Iterator[Result]:
    """logits of a padded batch under the model's attention and under the plain one (eager)"""
    model, asked = patient.model, patient.config.attention
    name = getattr(model.config, "_attn_implementation", None)
    if asked and name != asked:
        yield fault(f"the model took {name} in place of {asked}", "set attention to what it supports")
    if name in (None, "eager"):
        yield fine("eager")
        return
    vocab = model.get_input_embeddings().weight.shape[0]
    pairs = [([n % vocab for n in range(3, length)], [5 % vocab, 6 % vocab]) for length in (5, 12)]
    batch = collate(pairs, [0, 1], 0, model.device)
    logits = model(**batch.arguments).logits[batch.mask]
    try:
        model.set_attn_implementation("eager")
        plain = model(**batch.arguments).logits[batch.mask]
    finally:
        model.set_attn_implementation(name)
    off = float((logits - plain).abs().max() / plain.abs().max())
    if off <= ROUNDING[torch.float32]:
        yield fine(f"{name}, off by {off:.0e} of the largest logit")
    else:
        yield fault(f"{name} is off by {off:.1%} of the largest logit", 'attention = "eager"')


@check
def output_layer(patient: Patient) -> Iterator[Result]:
    """what makes logits of hidden states, and whether its weight is the embedding's"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the finding says it
        head = Head(patient.model)
    if head.form == "linear":
        cap = f" under a cap of {head.cap:g}" if head.cap else ""
        scale = "" if head.scale == 1 else f", scaled by {head.scale:g}"
        yield fine(f"a linear layer{cap}{scale}: logits of a batch are never whole")
    else:
        yield note(
            "more than a linear layer, a scale and a cap: logits of a batch are made as a whole", "low max_tokens"
        )
    if tied := tied_names(patient.model):
        one, other = tied
        yield note(
            f"{one} and {other} share one weight",
            "no adapter on either: merged, it would change both (refused in lora.targets)",
        )


@check
def adapters(patient: Patient) -> Iterator[Result]:
    """low-rank adapters on a copy of the model without weights: which layers got one, which weights did not"""
    asked = patient.config.lora.r > 0
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = AutoModelForCausalLM.from_config(patient.model.config)
        try:
            adapted = add_adapters(bare, patient.config.lora if asked else LoRA(r=8))
        except TrainError as error:
            yield (fault if asked else note)(str(error), "other lora.targets" if asked else "name lora.targets")
            return
        _, left = reach(adapted)
        missed = [name for name in left if "expert" in name]
        found = f"{describe_reach(adapted)} of the weights"
    if missed:
        yield note(found, f"know that {', '.join(missed)} would stay as they are")
    else:
        yield fine(found)
