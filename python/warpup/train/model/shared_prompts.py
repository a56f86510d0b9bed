"""The completions of one prompt share its run through the model, forward and backward.

Group-relative methods learn from 8 or 16 completions of each prompt, and in plain batches the prompt stands before
every one of them. Here it is run once, as when sampling: its keys and values are handed to each of its completions, and
what these send back is summed there. Same hidden states and gradients to rounding, (copies - 1) x prompt tokens fewer.
"""

from __future__ import annotations

import inspect
from typing import cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .batch import Batch, collate
from .cache import cache_argument
from .routers import layers_of

USED = ("position_ids", "attention_mask", "use_cache")  # arguments of a body, beside its cache


def hidden_of_shared(body, config, batch: Batch) -> Tensor:
    """(B, L, H): the hidden states that predict each row's targets, of a batch that shares its prompts."""
    prompts = batch.prompts
    assert prompts is not None
    lengths, owner = prompts.lengths, prompts.owner
    cache = DynamicCache(config=config)
    fixed = {cache_argument(type(body)): cache, "use_cache": True}
    # Padded on the right: each query sees at least itself, and no softmax is over nothing.
    read = body(input_ids=prompts.ids, attention_mask=prompts.attention, **fixed)
    last = read.last_hidden_state[torch.arange(len(lengths), device=lengths.device), lengths - 1][owner].unsqueeze(1)
    steps = batch.inputs.shape[1]
    if steps == 0:
        return last
    cache.reorder_cache(cast(torch.LongTensor, owner))
    written = body(
        input_ids=batch.inputs,
        attention_mask=torch.cat([prompts.attention[owner], batch.attention], 1),
        position_ids=lengths[owner].unsqueeze(1) + torch.arange(steps, device=lengths.device),
        **fixed,
    )
    return torch.cat([last, written.last_hidden_state], 1)


@torch.no_grad()
def can_share(model, body) -> bool:
    """Whether sharing gives the hidden states of the plain way, tried on a few tokens of the model itself.

    Not with recurrent or sliding-window layers, whose caches hold less than all keys; nor with checkpointed layers,
    which keep no cache; nor with routed experts, whose balance counts each token of the batch.
    """
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()) or layers_of(model):
        return False
    arguments = inspect.signature(type(body).forward).parameters
    if not cache_argument(type(body)) or not all(name in arguments for name in USED):
        return False
    cache = DynamicCache(config=model.config)
    if not cache.layers or not all(type(layer) is DynamicLayer for layer in cache.layers):
        return False
    vocab, device = body.get_input_embeddings().num_embeddings, next(body.parameters()).device
    ids = [n % vocab for n in range(3, 14)]
    pairs = [(ids[:3], ids[3:5]), (ids[:3], ids[4:8]), (ids[2:7], ids[7:10])]
    batch = collate(pairs, range(3), 0, device)
    plain = body(**batch.arguments).last_hidden_state[batch.mask]
    shared = collate(pairs, range(3), 0, device, share=True)
    found = hidden_of_shared(body, model.config, shared)[shared.mask]
    return found.shape == plain.shape and torch.allclose(found, plain, rtol=1e-2, atol=1e-2 * float(plain.abs().max()))
