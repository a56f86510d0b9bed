"""moe_route beyond the contract: shapes, ties, special values, replay, peers, messages."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cases import OPS
from tests.support.inputs import moved_to
from warpup import moe_balance_loss, moe_route

CASE = OPS["moe_route"]
INF, NAN = math.inf, math.nan
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def logits_of(tokens, experts, device="cpu", seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, experts, generator=generator).to(device, dtype)


# ---- shapes, layouts, options ---------------------------------------------------------------------------------------


@st.composite
def problems(draw):
    # Around: a warp, the experts that a lane of the CUDA kernel holds (2, 4, 8, 32), the CPU's 32 lanes.
    experts = draw(st.sampled_from([1, 2, 31, 32, 33, 64, 65, 128, 130, 257, 600]))
    tokens = draw(st.sampled_from([0, 1, 2, 7, 8, 9, 30]))
    k = draw(st.sampled_from(sorted({1, min(2, experts), min(9, experts), min(experts, 40)})))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    layout, dtype = (
        draw(st.sampled_from(["contiguous", "misaligned", "padded", "transposed"])),
        draw(st.sampled_from(FLOATS)),
    )
    scale = draw(st.sampled_from([0.1, 1.0, 20.0]))

    def fill(*shape):
        return (scale * torch.randn(shape, generator=rng)).to(dtype)

    logits = {
        "contiguous": lambda: fill(tokens, experts),
        "misaligned": lambda: fill(tokens * experts + 1)[1:].view(tokens, experts),
        "padded": lambda: fill(tokens, experts + 3)[:, 1 : experts + 1],
        "transposed": lambda: fill(experts, tokens).T,
    }[layout]()
    if draw(st.booleans()) and experts > 1:
        logits[..., experts // 2] = -INF
    inputs = {"logits": logits, "k": k, "renormalize": draw(st.booleans()), "scale": draw(st.sampled_from([1.0, 2.5]))}
    score = draw(st.sampled_from(["softmax", "softmax", "sigmoid", "sqrt_softplus"]))
    over_chosen = score == "softmax" and draw(st.booleans())
    inputs |= {"score": score, "order": "topk_softmax" if over_chosen else "softmax_topk"}
    if draw(st.booleans()):
        inputs["bias"] = torch.randn(experts, generator=rng)
    if experts % 2 == 0 and draw(st.booleans()):
        kept = draw(st.sampled_from([1, 2]))
        rule = draw(st.sampled_from(["top1", "top2", "topk"]))
        if kept * experts // 2 >= k and (rule != "topk" or k >= kept) and experts > 2:
            inputs["groups"] = (2, kept, rule)
    if draw(st.booleans()):
        inputs["token_mask"] = torch.rand(tokens, generator=rng) < 0.6
    kind = draw(st.sampled_from(["none", "none", "bounds", "length"]))
    if kind == "bounds":
        inner = torch.randint(tokens + 1, (draw(st.sampled_from([0, 1, 5])),), generator=rng).sort().values
        inputs["sequences"] = torch.cat([torch.tensor([0]), inner, torch.tensor([tokens])])
    elif kind == "length":
        inputs["sequences"] = next(n for n in (7, 5, 3, 2, 1) if tokens % n == 0)
    return inputs


@given(inputs=problems())
@settings(max_examples=80)
def test_shapes_layouts_and_options(backend, inputs):
    """Choices are those of float64 where these are clear; then all else is held to the rule on the same choices."""
    inputs = moved_to(backend.device, inputs)
    got = moe_route(**inputs)
    want = CASE.reference(**{k: v.double() if k in ("logits", "bias") else v for k, v in inputs.items()})
    clear = (got.indices == want.indices).all(1)
    saturated = inputs["score"] == "sigmoid" and bool((inputs["logits"] > 12).any())  # many scores round to 1
    if not (clear.all() or saturated):  # two keys that differ by less than a rounding
        assert inputs["logits"].dtype != torch.float64
        assert (~clear).sum() <= 2 + len(clear) // 8
    CASE.check({k: v for k, v in inputs.items() if k not in ("bias", "groups")} | {"replay_indices": got.indices})
    again = moe_route(**{k: v for k, v in inputs.items() if k not in ("bias", "groups")}, replay_indices=got.indices)
    torch.testing.assert_close(tuple(again), tuple(got), rtol=0, atol=0)  # a replay of the own choice changes no bit


@pytest.mark.parametrize("experts", [512, 1024])
def test_many_experts(backend, experts):
    CASE.check({"logits": logits_of(20, experts, backend.device), "k": 10, "renormalize": True})


def test_no_tokens_and_one_expert(backend):
    empty = moe_route(torch.zeros(0, 4, device=backend.device, requires_grad=True), 2)
    assert empty.weights.shape == (0, 2)
    assert not empty.counts.any()
    assert empty.z_loss.item() == 0
    assert not empty.mean_score.any()
    one = moe_route(torch.tensor([[-3.0], [5.0]], device=backend.device), 1)
    assert one.weights.tolist() == [[1], [1]]
    assert one.counts.tolist() == [2]
    assert one.z_loss.item() == 17


# ---- choice ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"score": "sigmoid", "groups": (2, 1, "top2")}])
def test_ties_go_to_the_lower_index(backend, options):
    logits = torch.zeros(3, 40, device=backend.device)
    logits[1, 1::2] = -0.0
    logits[2] = torch.arange(40.0, device=backend.device) // 10
    options = options | ({"bias": torch.zeros(40, device=backend.device)} if options.get("bias") else {})
    indices = moe_route(logits, 4, **options).indices.tolist()
    assert indices == [[0, 1, 2, 3], [0, 1, 2, 3], [30, 31, 32, 33]]


def test_scores_that_round_to_one_value_do_not_tie(backend):
    """sigmoid(40) and sigmoid(50) are both 1 in float32; the logits are not."""
    logits = torch.tensor([[40.0, 50.0, 60.0, 0.0]], device=backend.device)
    assert moe_route(logits, 2, score="sigmoid").indices.tolist() == [[2, 1]]


def test_every_expert_in_order(backend):
    logits = logits_of(5, 33, backend.device)
    logits[0] = -INF
    logits[0, 7] = 1.0
    route = moe_route(logits, 33)
    assert torch.equal(route.indices[1:], logits[1:].argsort(-1, descending=True))
    assert route.indices[0].tolist() == [7, *(e for e in range(33) if e != 7)]
    torch.testing.assert_close(route.weights.sum(1), torch.ones(5, device=backend.device))


def test_group_rules(backend):
    """Four groups of three: by its largest, by its two largest, by the k / kept = 3 largest, another one wins."""
    groups = torch.tensor([[9.0, -9, -9], [7, 5, -9], [4, 4.5, 4.8], [0, 0, 0]], device=backend.device)
    logits = groups.view(1, 12)
    bias = torch.zeros(12, device=backend.device)
    options = {"order": "topk_softmax", "bias": bias}
    chosen = {
        r: set(moe_route(logits, 3, groups=(4, 1, r), **options).indices[0].tolist()) for r in ("top1", "top2", "topk")
    }
    assert chosen == {"top1": {0, 1, 2}, "top2": {3, 4, 5}, "topk": {6, 7, 8}}


def test_the_bias_chooses_and_does_not_weigh(backend):
    logits = logits_of(6, 8, backend.device)
    bias = torch.tensor([0, 0, 0, 0, 0, 0, 5.0, 5.0], device=backend.device, requires_grad=True)
    route = moe_route(logits, 2, score="sigmoid", bias=bias)
    assert (route.indices >= 6).all()
    torch.testing.assert_close(route.weights, torch.sigmoid(logits).gather(1, route.indices))
    assert not route.weights.requires_grad


# ---- special values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrt_softplus"])
def test_nan_stays_with_its_token(backend, score):
    logits = logits_of(4, 6, backend.device)
    logits[1, 2] = NAN
    logits[2] = NAN
    route = moe_route(logits, 6, score=score)
    assert (route.indices.sort(-1).values == torch.arange(6, device=backend.device)).all()
    assert route.indices[1, -1] == 2
    assert route.weights[1].isnan().sum() == (6 if score == "softmax" else 1)
    assert route.weights[[0, 3]].isfinite().all()
    assert route.weights[2].isnan().all()


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrt_softplus"])
def test_what_counts_for_nothing(backend, score):
    """Masked tokens, whatever stands in them, and tokens without a logit above -inf."""
    logits = logits_of(6, 10, backend.device)
    want = moe_route(logits[[0, 3, 5]], 3, score=score)
    logits[1], logits[2], logits[4] = NAN, INF, -INF
    mask = torch.tensor([1, 0, 0, 1, 1, 1], device=backend.device)
    logits.requires_grad_()
    route = moe_route(logits, 3, score=score, token_mask=mask)
    for got, expected in zip(route[2:], want[2:], strict=True):
        torch.testing.assert_close(got, expected)
    assert route.indices[[1, 2, 4]].unique().tolist() == [-1]
    assert not route.weights[[1, 2, 4]].any()
    torch.testing.assert_close(route.weights[[0, 3, 5]], want.weights)
    (route.weights.sum() + route.mean_score.square().sum() + route.z_loss).backward()
    assert not logits.grad[[1, 2, 4]].any()
    assert logits.grad[[0, 3, 5]].abs().min() > 0


def test_huge_logits(backend):
    logits = torch.tensor([[1e30, 0.0, -1e30], [88.0, 87.0, -300.0]], device=backend.device, requires_grad=True)
    route = moe_route(logits, 2, renormalize=True)
    assert route.weights[0].tolist() == [1, 0]
    route.weights.square().sum().backward()
    assert logits.grad.isfinite().all()


# ---- replay, gradients ----------------------------------------------------------------------------------------------


def test_replay(backend):
    """The rollout's experts, also dropped and repeated ones, weighed by the live logits."""
    logits = logits_of(3, 5, backend.device).requires_grad_()
    given = torch.tensor([[4, 0], [-1, 2], [3, 3]], dtype=torch.int32, device=backend.device)
    route = moe_route(logits, 2, renormalize=True, replay_indices=given)
    assert torch.equal(route.indices, given.long())
    assert route.counts.tolist() == [1, 0, 1, 2, 1]
    p = torch.softmax(logits.detach()[0], 0)[[4, 0]]
    torch.testing.assert_close(route.weights[0], p / p.sum())
    assert route.weights[1].tolist() == [0, 1]
    assert route.weights[2].tolist() == [0.5, 0.5]
    (gradient,) = torch.autograd.grad(route.weights[0, 0], logits)
    assert gradient[0, 4] > 0 > gradient[0, 0]


def test_backward_twice(backend):
    logits = logits_of(9, 16, backend.device, dtype=torch.bfloat16).requires_grad_()
    route = moe_route(logits, 4, renormalize=True)
    loss = route.weights.square().sum() + moe_balance_loss(route) + route.z_loss
    first, second = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert first.dtype == torch.bfloat16


def test_autocast(backend):
    """Logits that autocast made bfloat16 give float32 weights, computed from what they are."""
    x, w = logits_of(4, 8, backend.device), logits_of(8, 8, backend.device, seed=1)
    with torch.autocast(backend.device, torch.bfloat16):
        logits = x @ w
        route = moe_route(logits, 2)
    assert logits.dtype == torch.bfloat16
    assert route.weights.dtype == torch.float32
    torch.testing.assert_close(route.weights, torch.softmax(logits.float(), -1).topk(2).values)


# ---- sequences ------------------------------------------------------------------------------------------------------


def test_sequences(backend):
    """Statistics of each sequence are those of its tokens alone; chunks of tokens and sequences end where they like."""
    logits = logits_of(50, 12, backend.device).requires_grad_()
    bounds = torch.tensor([0, 0, 3, 8, 8, 29, 50], device=backend.device)
    route = moe_route(logits, 2, score="sigmoid", sequences=bounds)
    parts = [moe_route(logits[a:b], 2, score="sigmoid") for a, b in pairwise(bounds)]
    assert torch.equal(route.counts, torch.stack([p.counts for p in parts]))
    torch.testing.assert_close(route.mean_score, torch.stack([p.mean_score for p in parts]))
    loss = torch.stack([moe_balance_loss(p) for p in parts]).mean()
    torch.testing.assert_close(moe_balance_loss(route), loss)
    torch.testing.assert_close(*(torch.autograd.grad(v, logits)[0] for v in (moe_balance_loss(route), loss)))
    by_length = moe_route(logits, 2, sequences=10)
    torch.testing.assert_close(
        tuple(by_length), tuple(moe_route(logits, 2, sequences=torch.arange(0, 51, 10, device=backend.device)))
    )


# ---- transformers ---------------------------------------------------------------------------------------------------

PEERS = {  # module, router, options of moe_route
    "Qwen3Moe": ("qwen3_moe", "Qwen3MoeTopKRouter", {"renormalize": True}),
    "Olmoe": ("olmoe", "OlmoeTopKRouter", {}),
    "Mixtral": ("mixtral", "MixtralTopKRouter", {"order": "topk_softmax"}),
    "GptOss": ("gpt_oss", "GptOssTopKRouter", {"order": "topk_softmax"}),
    "DeepseekV3": (
        "deepseek_v3", "DeepseekV3TopkRouter",
        {"score": "sigmoid", "groups": (4, 2, "top2"), "renormalize": True, "scale": 2.5},
    ),
}  # fmt: skip


def peer(name):
    """A router of transformers with random weights, and its config."""
    import importlib

    transformers = pytest.importorskip("transformers")
    module, router, options = PEERS[name]
    router = getattr(importlib.import_module(f"transformers.models.{module}.modeling_{module}"), router, None)
    if router is None:
        pytest.skip(f"transformers {transformers.__version__} has another {name} router")
    small = {"hidden_size": 24, "num_experts_per_tok": 4, "norm_topk_prob": options.get("renormalize", False)}
    small |= {"num_experts": 16, "num_local_experts": 16, "n_routed_experts": 16}
    small |= {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
    built = router(getattr(transformers, f"{name}Config")(**small))
    for p in (*built.parameters(), *built.buffers()):
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.dim())) * 0.3
    return built, options


@pytest.mark.parametrize("name", PEERS)
def test_transformers_routers(name):
    router, options = peer(name)
    hidden = logits_of(50, 24).requires_grad_()
    logits, weights, indices = router(hidden)
    if hasattr(router, "e_score_correction_bias"):
        options = options | {"bias": router.e_score_correction_bias}
    route = moe_route(logits, 4, **options)
    theirs, ours = indices.sort(-1), route.indices.sort(-1)
    assert torch.equal(theirs.values, ours.values)
    a, b = weights.gather(1, theirs.indices), route.weights.gather(1, ours.indices)
    torch.testing.assert_close(b, a)
    g = torch.randn(50, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(*(torch.autograd.grad(v, hidden, g, retain_graph=True)[0] for v in (b, a)))


# ---- messages -------------------------------------------------------------------------------------------------------

Z = torch.zeros(2, 4)
WRONG = [
    ({"logits": Z[0]}, r"logits must have shape \(T, E\), got \(4,\)"),
    ({"logits": Z.long()}, "logits must be float32, float64, bfloat16 or float16, got int64"),
    ({"logits": torch.zeros(1, 1025)}, "logits must be of 1 to 1024 experts, got 1025"),
    ({"k": 5}, r"k must be in \[1, 4\], got 5"),
    ({"k": 0}, r"k must be in \[1, 4\], got 0"),
    ({"score": "relu"}, "score must be softmax, sigmoid or sqrt_softplus, got relu"),
    ({"order": "topk"}, "order must be one of .*, got 'topk'"),
    ({"order": "topk_softmax", "score": "sigmoid"}, "order topk_softmax needs score softmax, got sigmoid"),
    ({"epsilon": -1.0, "renormalize": True}, "epsilon must be at least 0, got -1"),
    ({"epsilon": 1e-6}, "epsilon is for renormalize=True .* got 1e-06"),
    ({"epsilon": 1e-6, "renormalize": True, "order": "topk_softmax"}, "epsilon is for renormalize=True"),
    ({"bias": torch.zeros(3)}, r"bias must have shape \(4\), got \(3\)"),
    ({"groups": (3, 1, "top2")}, "groups must be 1 to 32 and divide the 4 experts, got 3"),
    ({"groups": (2, 1, "best")}, "groups must be .number, how many are kept"),
    ({"groups": (4, 1, "top1")}, r"groups kept must be in \[1, 4\] and have k = 2 experts, got 1 of 1"),
    ({"groups": (4, 2, "top2")}, "a group of 1 experts cannot be scored by its top 2"),
    ({"replay_indices": torch.tensor([[0, 4], [1, 2]])}, r"replay_indices\[0, 1\] = 4 is outside \[-1, 4\)"),
    ({"replay_indices": torch.zeros(2, 3, dtype=torch.int64)}, r"replay_indices must have shape \(2, 2\), got"),
    ({"token_mask": torch.ones(3)}, r"token_mask must have shape \(2\), got \(3\)"),
    ({"sequences": 3}, "sequences must be at least 1 and divide the number of tokens, got 3 for 2"),
    ({"sequences": torch.tensor([0, 1])}, "sequences must ascend from 0 to the 2 tokens"),
    ({"sequences": torch.tensor([0, 2, 1, 2])}, "sequences must ascend from 0 to the 2 tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_messages(change, message):
    with pytest.raises(ValueError, match=message):
        moe_route(**({"logits": Z, "k": 2} | change))
