"""tools/scale: its counts against models that run, its exchanges against two and four processes, its page."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

from tests.scale import checks
from tests.support.processes import spawned
from tests.support.tiny import llama, log_of
from tools.scale import __main__ as scale
from tools.scale import phases
from tools.scale.sizes import H100, H200, Batch, Model

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
    "intermediate_size": 20, "vocab_size": 44,
}  # fmt: skip
MIXTURE = SIZES | {"moe_intermediate_size": 10, "num_experts": 5, "num_experts_per_tok": 2}
TINY = {
    "llama": llama().config,
    "dense": Qwen3Config(**SIZES, tie_word_embeddings=True),
    "mixture": Qwen3MoeConfig(**MIXTURE, tie_word_embeddings=False, output_router_logits=False),
}
LOOPS = {"experts_implementation": "eager"}  # an expert at a time, in products that torch counts
LARGE = {name: config for name, (config, _) in scale.MODELS.items()}


@pytest.mark.parametrize("name", [*TINY, *LARGE])
def test_parameters_are_the_models(name):
    config = (TINY | LARGE)[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert Model.of(config).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_flops_are_those_that_torch_counts(name, checkpointed):
    """Eager attention, whose products are not causal: each token attends to all of them."""
    config, rows, length = TINY[name], 2, 7
    options = {"attn_implementation": "eager"} | (LOOPS if name == "mixture" else {})
    model, sizes = AutoModelForCausalLM.from_config(config, **options), Model.of(config)
    if checkpointed:
        model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(config.vocab_size, (rows, length))
    forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with set_checkpoint_early_stop(False):
        with forward:
            loss = model(input_ids=ids, use_cache=False).logits.square().sum()
        with backward:
            loss.backward()
    tokens = rows * length
    once, layers = (sizes.flops(tokens, length, predicted) for predicted in (tokens, 0))
    assert forward.get_total_flops() == once
    assert backward.get_total_flops() == 2 * once + checkpointed * layers


@pytest.mark.parametrize("name", TINY)
def test_cached_bytes_are_the_caches(name):
    config = TINY[name]
    model = AutoModelForCausalLM.from_config(config, **LOOPS if name == "mixture" else {}).to(torch.bfloat16)
    cache = model(input_ids=torch.randint(config.vocab_size, (2, 9)), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 18 * Model.of(config).cached


def test_state_is_what_adamw_holds():
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.arange(8).view(2, 4)).logits.sum().backward()
    optimizer.step()
    held = sum(
        2 * p.nbytes + sum(optimizer.state[p][k].nbytes for k in ("exp_avg", "exp_avg_sq")) for p in model.parameters()
    )
    assert held == phases.state(Model.of(model.config), 1)


@pytest.mark.parametrize("change", [{"model_type": "gpt2"}, {"mlp_only_layers": [1]}], ids=["kind", "layers"])
def test_another_kind_of_model_is_refused(change):
    config = Qwen3MoeConfig(**MIXTURE)
    for name, value in change.items():
        object.__setattr__(config, name, value)
    with pytest.raises(ValueError, match=r"model_type gpt2: expected llama|mlp_only_layers, .* in all layers"):
        Model.of(config)


# ---- Two and four processes -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[2, 4])
def group(request, tmp_path_factory):
    """How many processes, and what each of them counted, by check."""
    folder, world = tmp_path_factory.mktemp("group"), request.param
    assert spawned(checks.main, folder, [*checks.CHECKS], 300, world) == [0] * world
    found = {
        check: [json.loads((folder / f"{check}.{r}").read_text()) for r in range(world)] for check in checks.CHECKS
    }
    return world, found, log_of(folder / "run")


def test_the_trainer_sums_its_gradients_once_an_update(group):
    _, found, log = group
    model = llama(**checks.TINY)
    shapes = {tuple(p.shape) for p in model.parameters()}
    steps = [line for line in log if "loss" in line]
    assert steps
    for calls in found["trainer"]:
        sums = [(tuple(shape), size) for name, shape, size in calls if name == "all_reduce"]
        gradients = sum(size for shape, size in sums if shape in shapes)
        assert gradients == 2 * len(steps) * phases.summed(Model.of(model.config))
        scores = [(shape, size) for shape, size in sums if shape not in shapes and len(shape) == 2]
        assert len(scores) == len(steps)  # log-probs of the reference
        assert all(size == 4 * 12 * shape[1] and shape[1] <= 8 for shape, size in scores)


def test_shards_are_gathered_twice_and_gradients_summed_once(group):
    _, found, _ = group
    parameters = Model.of(llama(**checks.TINY).config).parameters
    for calls in found["sharded"]:
        gathered, summed = (
            sum(size for name, _, size in calls if name.startswith(kind)) for kind in ("all_gather", "reduce_scatter")
        )
        assert gathered == 2 * 2 * parameters
        assert summed == 4 * parameters


def test_tokens_travel_to_experts_and_back_both_ways(group):
    world, found, _ = group
    sizes = Model(checks.EXPERTS["hidden"], 1, 1, 1, 1, checks.EXPERTS["intermediate"], 8, experts=8, active=2)
    for sent in found["experts"]:
        assert sum(sent) == 4 * phases.travelling(sizes, 16, world)


# ---- The rule of time, and the page ---------------------------------------------------------------------------------


def test_the_slowest_sets_a_phase():
    work = phases.Work(flops=989e12 * 0.4 * 3, memory=3.35e12 * 2, nvlink=450e9 * 5, network=50e9, waits=0.5)
    assert work.each(H100) == pytest.approx({"products": 3, "memory": 2, "NVLink": 5, "network": 1})
    assert work.seconds(H100) == pytest.approx(5.5)
    assert work.limit(H100) == "NVLink"
    assert phases.Work(waits=1.0).limit(H100) == "latency"
    assert (work * 2 + work).seconds(H100) == pytest.approx(16.5)


def test_a_ring_brings_all_but_the_own_part():
    assert phases.ring(8e9, 4, H100) == phases.Work(nvlink=6e9)
    two_nodes = phases.ring(16e9, 16, H100)
    assert (two_nodes.nvlink, two_nodes.network) == (14e9, 1e9)  # half of all comes from the other node, by eight ports


def test_sampling_is_bound_by_weights_then_by_the_longest_completion():
    model, batch = Model.of(LARGE["8B"]), Batch()
    sample = partial(phases.rollout, model, batch)
    read = 2 * (model.parameters - model.vocab * model.hidden)
    floor = batch.longest * read / 8 / H100.bandwidth  # each of eight GPUs reads its eighth for each token
    times = [sample(gpus, H100).seconds(H100) for gpus in (8, 64, 512)]
    assert times[0] > times[1] > times[2] > floor
    assert sample(512, replace(H100, bandwidth=2 * H100.bandwidth)).seconds(H100) == pytest.approx(times[2], rel=0.5)
    assert sample(8, replace(H100, memory=2e9)) is None
    assert phases.step(Model.of(LARGE["235B-A22B"]), batch, 8, H200) is None


def test_tokens_travel_where_weights_are_more_to_move():
    """Of a mixture's micro-batches only short ones."""
    model = Model.of(LARGE["235B-A22B"])
    gathered = phases.gathered(model, 64, H200)
    found = [phases.exchanges(model, tokens, 64, H200) == gathered for tokens in (1024, 65536)]
    assert found == [False, True]


def test_page_is_up_to_date():
    text = scale.PAGE.read_text()
    assert scale.page(text) == text, "run `python -m tools.scale`"


@pytest.mark.parametrize(("held", "said"), [(None, "has no config.json"), ("gpt2", "model_type gpt2: expected llama")])
def test_a_folder_without_such_a_model_is_refused(tmp_path, monkeypatch, capsys, held, said):
    if held:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": held}))
    monkeypatch.setattr("sys.argv", ["scale", "--config", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        scale.main()
    assert end.value.code == 2
    assert said in capsys.readouterr().err
