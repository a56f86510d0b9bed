"""Every public operator with every kind of wrong argument: a right result, or a clear error that names an argument."""

import inspect
import re
from collections import Counter
from functools import cache
from itertools import product

import pytest
import torch
from torch import Tensor

import warpup
from tests.support.cases import OPS
from warpup.reflection import ReflectionBatch

# What is given in place of a tensor.
OF_ANOTHER_TYPE = {
    "None": lambda x: None,
    "list": lambda x: x.tolist(),
    "NumPy array": lambda x: x.numpy(),
    "string": lambda x: "x",
    "object": lambda x: object(),
    "int8": lambda x: x.to(torch.int8),
    "complex": lambda x: x.to(torch.complex64),
    "sparse": lambda x: x.to_sparse(),
}
OF_ANOTHER_SHAPE = {
    "one more row": lambda x: torch.cat([x, x[:1]]),
    "one more column": lambda x: torch.cat([x, x[..., :1]], -1),
    "one more dimension": lambda x: x.unsqueeze(0),
    "one element": lambda x: x.reshape(-1)[0],
    "nothing": lambda x: x[:0],
}


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))


@cache
def good_arguments() -> dict[str, dict]:
    """Arguments of every public function that takes tensors: from the case table, or made here."""
    names = [n for n in warpup.__all__ if inspect.isfunction(f := getattr(warpup, n)) and _takes_tensors(f)]
    names.remove("vocab_parallel_logprob")  # needs ranks
    found = {}
    for name in names:
        case = OPS.get(name)
        if case is not None:
            inputs = case.make(variant=case.variants[-1])
            if set(inputs) <= set(inspect.signature(getattr(warpup, name)).parameters):
                found[name] = inputs
    ids, mask, rows = torch.arange(12).reshape(3, 4) % 5, torch.ones(3, 4, dtype=torch.bool), torch.arange(3)
    tokens = {"old_logp": -rand(3, 4), "rollout_logp": -rand(3, 4), "mask": mask}
    box = {"center": rand(3, 4), "radius": rand(3, 4)}
    image = {"center": rand(2, 3, 8, 8), "radius": rand(2, 3, 8, 8)}
    route = warpup.moe_route(rand(6, 4), 2)
    batch = ReflectionBatch(3)
    found |= {
        "after_shared_prefix": dict(chosen_ids=ids, rejected_ids=ids, chosen_mask=mask, rejected_mask=mask),
        "apply_schedule_": dict(logits=rand(3, 9), tables=batch.tables, slots=rows),
        "clip_cov_tokens": dict(logp=-rand(3, 4), old_logp=-rand(3, 4), advantages=rand(3), mask=mask),
        "continuous_tokens": dict(logits=rand(3, 9), tables=batch.tables, slots=rows, embedding=rand(9, 5), count=2),
        "coverage_loss": dict(logp=-rand(3, 4), mask=mask, n=4),
        "coverage_weights": dict(sequence_logp=-rand(3), n=4),
        "degree_loss": dict(
            chosen_logits=rand(3, 3), rejected_logits=rand(3, 3), chosen_degree=rows, rejected_degree=rows
        ),
        "interval_adaptive_avg_pool2d": image | dict(output_size=2),
        "interval_attention": dict.fromkeys(("query", "key", "value"), (rand(1, 4, 4), rand(1, 4, 4)))
        | dict(attn_mask=torch.ones(4, 4, dtype=torch.bool)),
        "interval_avg_pool2d": image | dict(kernel_size=2),
        "interval_max_pool2d": image | dict(kernel_size=2),
        "interval_box": dict(x=rand(2, 3, 4, 4), eps=0.1, std=rand(3)),
        "interval_layer_norm": box | dict(normalized_shape=4, weight=rand(4), bias=rand(4)),
        "interval_rms_norm": box | dict(normalized_shape=4, weight=rand(4)),
        "interval_softmax": box,
        "interval_conv1d": dict(center=rand(2, 3, 8), radius=rand(2, 3, 8), weight=rand(4, 3, 3), bias=rand(4)),
        "kl_cov_tokens": dict(logp=-rand(3, 4), advantages=rand(3, 4), mask=mask),
        "kto_loss": dict(logp=-rand(3), ref_logp=-rand(3), desirable=torch.tensor([True, False, True])),
        "linear_divergence": dict(
            student_hidden=rand(3, 5), student_weight=rand(9, 5), teacher_hidden=rand(3, 6), teacher_weight=rand(9, 6)
        ),
        "mark_seen": dict(seen=torch.zeros(3, 9, dtype=torch.uint8), slots=rows, tokens=rows),
        "moe_balance_loss": dict(route=route),
        "moe_device_balance_loss": dict(route=route, devices=2),
        "moe_update_bias": dict(bias=rand(4), counts=route.counts, rate=0.1),
        "preference_loss": dict(chosen=-rand(3), rejected=-rand(3), ref_chosen=-rand(3), ref_rejected=-rand(3)),
        "reflection_state_update_": dict(tables=batch.tables, tokens=rows.unsqueeze(1), slots=rows),
        "rollout_mask": tokens | dict(cap=1.0),
        "rollout_weights": tokens,
        "sample_step": dict(logits=rand(3, 9), tables=batch.tables, slots=rows),
        "segment_advantage": dict(rewards=rand(3), values=rand(3, 4), probs=rand(3, 4), mask=mask),
        "segment_ids": dict(probs=rand(3, 4), mask=mask),
        "sequence_logprob": dict(logp=-rand(3, 4), mask=mask),
        "sequence_mask": dict(logp=-rand(3, 4), rollout_logp=-rand(3, 4), advantages=rand(3), mask=mask, delta=0.1),
        "token_logprob": dict(logits=rand(3, 9), targets=rows),
        "replay_logprob": dict(
            logits=rand(3, 9), targets=rows, token_set=[1], delta=rand(3), kept_mask=rand(3, 9) >= 0
        ),
        "top_entropy_mask": dict(entropy=rand(3, 4), mask=mask, quantile=0.5),
        "weighted_nll": dict(logp=-rand(3, 4), mask=mask, weights=rand(3)),
        "z_loss": dict(lse=rand(3, 4), mask=mask),
    }
    found |= {
        "interval_abs": box,
        "interval_log": box | dict(center=2 + rand(3, 4)),
        "interval_pow": box | dict(exponent=2),
        "interval_sqrt": box | dict(center=2 + rand(3, 4)),
    }
    for kind in ("clamp", "elu", "exp", "gelu", "hardswish", "leaky_relu", "sigmoid", "silu", "softplus", "tanh"):
        found[f"interval_{kind}"] = box | dict(clean=rand(3, 4))
    assert set(names) == set(found), set(names) ^ set(found)
    return found


def _takes_tensors(function) -> bool:
    return bool(re.search("Tensor|Tables|Route", str(inspect.signature(function))))


def outcome(name: str, argument: str, value) -> str:
    """ "accepted", "named" (an error that names an argument), or the error itself."""
    function, given = getattr(warpup, name), good_arguments()[name]
    given = {k: v.clone() if isinstance(v, Tensor) else v for k, v in given.items()}
    try:
        function(**{**given, argument: value})
    except (ValueError, TypeError) as error:
        words = set(re.findall(r"\w+", str(error)))
        return "named" if words & set(given) and len(str(error)) < 700 else f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


# What is right as it is given: another batch, vocabulary or number of experts, one number for all rows.
FREE = {
    "apply_schedule_": "logits",
    "continuous_tokens": "embedding",
    "coverage_weights": "sequence_logp",
    "degree_loss": "chosen_logits rejected_logits",
    "divergence": "temperature",
    "glu": "weights",
    "group_advantage": "rewards",
    "group_plan": "ids",
    "grouped_mm": "x",
    "interval_box": "std",
    "linear_logprob": "temperature delta token_set",
    "margin_bounds": "bias",
    "margin_cross_entropy": "bias",
    "mark_seen": "seen",
    "moe_combine": "y",
    "moe_gather": "x",
    "moe_plan": "indices",
    "moe_update_bias": "counts",
    "reflection_state_update_": "tokens",
    "replay_logprob": "delta",
    "role_advantage": "baseline_state",
    "sample_step": "logits",
    "segment_advantage": "values",
    "token_logprob": "logits",
    "topk_divergence": "student_logits temperature",
}


@pytest.mark.filterwarnings("ignore:Casting complex values:UserWarning")
@pytest.mark.parametrize("changes", [OF_ANOTHER_TYPE, OF_ANOTHER_SHAPE], ids=["type", "shape"])
def test_wrong_arguments_are_named(changes):
    """Boxes go through torch's own layers: what those say of a shape is not looked at here."""
    counts, silent, unclear = Counter(), [], []
    for name, given in good_arguments().items():
        parameters = inspect.signature(getattr(warpup, name)).parameters
        for (argument, value), (kind, change) in product(given.items(), changes.items()):
            if not isinstance(value, Tensor) or (kind == "None" and parameters[argument].default is None):
                continue
            if changes is OF_ANOTHER_SHAPE and (value.dim() == 0 or name.startswith(("interval", "margin"))):
                continue
            found = outcome(name, argument, change(value))
            counts[found if found in ("accepted", "named") else "unclear"] += 1
            # Whole numbers and complex ones are converted, zeros may be sparse, torch's own arithmetic takes arrays.
            converted = kind in ("int8", "complex", "sparse") or (kind == "NumPy array" and name.startswith("interval"))
            if found == "accepted" and not converted and argument not in FREE.get(name, "").split():
                silent.append((name, argument, kind))
            elif found not in ("accepted", "named"):
                unclear.append((name, argument, kind, found[:160]))
    print(f"{sum(counts.values())} calls with a wrong argument: {dict(counts)}")
    assert not silent, silent
    assert not unclear, "\n".join(map(str, unclear))
