"""How much a training minds its learning rate, plain and with what is said to help: z-loss, QK norm, muParam."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.methods.language_models import Size, drawn, fall, llama, losses, nll, train
from warpup import token_logprob, weighted_nll, z_loss
from warpup.metrics import lr_sensitivity
from warpup.nn import QKNorm
from warpup.optim import mu_groups


def normalize_queries(model) -> None:
    """A `QKNorm` in each attention layer, on the heads of its projections."""
    width = model.config.hidden_size // model.config.num_attention_heads
    for layer in model.model.layers:
        norm = layer.self_attn.qk_norm = QKNorm(width)
        for projection, of_head in ((layer.self_attn.q_proj, norm.query), (layer.self_attn.k_proj, norm.key)):

            def heads(module, inputs, output, of_head=of_head):
                return of_head(output.unflatten(-1, (-1, of_head.weight.shape[0]))).flatten(-2)

            projection.register_forward_hook(heads)


def nll_and_z(model, ids: Tensor) -> Tensor:
    logits, targets = model(input_ids=ids, use_cache=False).logits[:, :-1], ids[:, 1:].contiguous()
    logp, lse = token_logprob(logits, targets, lse=True)
    counted = torch.ones_like(logp)
    return weighted_nll(logp, counted) + z_loss(lse, counted)


def rates(seed: int, size: Size, kind: str) -> dict[str, float]:
    """Final losses at five rates, spread evenly in log: what not to know the best one costs."""
    steps, batch, final, initial = size.steps // 3, max(2, size.batch // 2), [], 0.0
    for rate in (1e-3, 10**-2.5, 1e-2, 10**-1.5, 1e-1):
        model = llama(size, seed)
        if kind == "qk":
            normalize_queries(model)
        initial = losses(model)["docs"]
        base = size.width // 4
        groups = mu_groups(model, rate, base, decay=1e-4) if kind == "mu" else [{"params": [*model.parameters()]}]
        optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), **{} if kind == "mu" else {"weight_decay": 0})
        loss = nll_and_z if kind == "z" else nll
        train(model, drawn(["docs"], batch, seed), range(steps), fall(steps), optimizer=optimizer, loss=loss)
        final.append(losses(model)["docs"])
    return {"docs": min(final), "sensitivity": lr_sensitivity(final, initial), "curve": final}
