"""Checks of sampling: hidden settings, repeatability, and whether what is learned from is what was sampled."""

import warnings
from collections.abc import Iterator

import torch

from ..errors import TrainError
from ..model.batch import collate
from ..model.heads import Head
from ..model.precision import computing
from ..model.tokens import end_tokens
from ..sampling.rollouts import rollout
from .findings import Patient, Result, check, fault, fine, note

# Settings of transformers' GenerationConfig that change what is sampled: the values that change nothing.
NEUTRAL = {
    "temperature": (1.0,), "top_k": (0,), "top_p": (1.0,), "min_p": (0.0,), "typical_p": (1.0,), "top_h": (),
    "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,), "repetition_penalty": (1.0,), "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,), "num_beams": (1,), "min_new_tokens": (0,), "min_length": (0,), "bad_words_ids": (),
    "suppress_tokens": ([],), "begin_suppress_tokens": ([],), "sequence_bias": (), "guidance_scale": (1.0,),
    "forced_bos_token_id": (), "forced_eos_token_id": (), "stop_strings": (), "exponential_decay_length_penalty": (),
    "penalty_alpha": (0.0,),
}  # fmt: skip
CLOSE = {None: 1e-2, torch.bfloat16: 0.25}  # log-probs, by what products are made in
TOKENS = 8


@check
def generation_config(patient: Patient) -> Iterator[Result]:
    """settings of the model's generation config that `generate` samples by without being asked"""
    config = patient.model.generation_config
    values = {name: getattr(config, name, None) for name in NEUTRAL}
    hidden = [f"{name} = {v!r}" for name, v in values.items() if v is not None and v not in NEUTRAL[name]]
    if hidden:
        yield note(
            f"{', '.join(hidden)}",
            "nothing: warpup samples by rlvr's own settings; set all of them where another tool's numbers are compared",
        )
    elif values["top_k"] is None:
        yield fine("none but transformers' own: `generate` samples from 50 tokens unless top_k is 0")
    else:
        yield fine("none")


@check
@torch.no_grad()
def sampled_and_learned(patient: Patient) -> Iterator[Result]:
    """prompts of two lengths, sampled twice from one seed, and their log-probs once more as the loss makes them"""
    model, tokenizer = patient.model, patient.tokenizer
    vocab = min(len(tokenizer), model.get_input_embeddings().weight.shape[0])
    prompts = [[n % vocab for n in range(3, length)] for length in (5, 14)]
    ends, pad = end_tokens(model, tokenizer), tokenizer.pad_token_id
    with computing(model, patient.products):
        try:
            one, other = (
                rollout(
                    model, prompts, eos=ends, pad=pad, max_new_tokens=TOKENS, copies=2,
                    generator=torch.Generator(model.device).manual_seed(0),
                )
                for _ in range(2)
            )  # fmt: skip
        except TrainError as error:
            asked = any(hasattr(stage, "max_new_tokens") for stage in patient.config.all_stages())
            change = "another model for RLVR: this one can only be warmed up"
            yield fault(str(error), change) if asked else note(str(error), change)
            return
        if torch.equal(one.tokens, other.tokens) and torch.equal(one.logp, other.logp):
            yield fine("the same tokens and log-probs twice, bit for bit")
        else:
            yield fault("one seed gives different tokens or log-probs", "torch.use_deterministic_algorithms, or eager")
        pairs = [(prompts[i // 2], one.completion(i)) for i in range(4)]
        batch = collate(pairs, range(4), pad, model.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `output_layer` says it
            head = Head(model)
        learned = head.logprob(head.hidden(batch), batch.completion)
    off = float((learned - one.logp[one.learned()]).abs().max())
    if off <= CLOSE[patient.products]:
        yield fine(f"learned and sampled log-probs differ by {off:.1g} at most")
    else:
        yield fault(
            f"learned and sampled log-probs differ by {off:.2g}: the policy that learns is not the one that sampled",
            'attention = "eager" or dtype = "float32"; else this model\'s cache and its forward pass disagree',
        )
