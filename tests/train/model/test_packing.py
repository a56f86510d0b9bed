"""Packed sequences are learned from as they are alone; models that read across them are refused; what packing saves."""

import random

import pytest
import torch
import transformers

from tests.support.tiny import EXAMPLES, TOKENIZER, gpt2, llama, log_of, mixture, warmup, weights
from warpup.train import Recipe, TrainError
from warpup.train.model.batch import IGNORE, LengthBuckets, micro_batches
from warpup.train.model.packing import check_packing, collate_packed, packed_batches

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = {
    "vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip


def build(name, **more):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SHAPE | more)
    return getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config)


def plain_gpt2():
    model = gpt2()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


MODELS = {
    "llama": llama,
    "eager": lambda: llama(attn_implementation="eager"),
    "gpt2": plain_gpt2,
    "mixture": mixture,
    "sliding": lambda: build("Mistral", sliding_window=5),
    "sliding and full": lambda: build(
        "Gemma3Text", head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
}


def test_rows_positions_and_targets():
    pairs = [([5, 6], [7, 8]), ([9], [3, 2]), ([4], [1]), ([1, 2, 3], [4, 5], [False, True])]
    batch = collate_packed(pairs, [[3, 2], [0, 1]], pad=0)
    assert batch.inputs.tolist() == [[1, 2, 3, 4, 4], [5, 6, 7, 9, 3]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 0, 1]]
    no = IGNORE
    assert batch.targets.tolist() == [[no, no, no, 5, 1], [no, 7, 8, 3, 2]]
    assert batch.rows == [3, 2, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 1, 2, 4, 6]
    short = collate_packed(pairs, [[0], [2]], pad=0)
    assert short.inputs.tolist() == [[5, 6, 7], [4, 0, 0]]
    assert short.positions.tolist() == [[0, 1, 2], [0, 0, 1]]
    assert short.attention.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert "attention_mask" not in short.arguments


def test_which_sequences_share_a_row_does_not_depend_on_memory():
    pairs = [([1] * n, [2] * n) for n in (3, 9, 1, 5, 2, 4, 4)]
    packs = []
    for limit in (1, 40, 1000):
        batches = list(packed_batches(pairs, range(7), 0, limit))
        assert all(batch.inputs.numel() <= limit or len(batch.inputs) == 1 for batch in batches)
        packs.append([row for batch in batches for row in batch.rows])
    assert packs[0] == packs[1] == packs[2]
    assert sorted(packs[0]) == list(range(7))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_packed_is_unpacked_to_rounding(tmp_path, name, checkpointing):
    """Every step takes all examples, so both learn from the same batches."""
    found = {}
    for packing in (False, True):
        stage = warmup(steps=3, batch_size=40, packing=packing, max_tokens=700)
        recipe = Recipe([stage], gradient_checkpointing=checkpointing)
        found[packing] = (
            weights(recipe.run(MODELS[name](), TOKENIZER, tmp_path / str(packing))),
            [
                {k: line[k] for k in ("loss", "grad_norm", "balance_loss", "tokens") if k in line}
                for line in log_of(tmp_path / str(packing))
            ],
        )
    for one, other in zip(found[False][1], found[True][1], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    for key, value in found[False][0].items():
        if not key.endswith("c_attn.bias"):  # a third of it, the keys', has gradient 0: Adam makes steps of rounding
            torch.testing.assert_close(found[True][0][key], value, rtol=1e-3, atol=2e-5)


def test_objectives_of_whole_completions_are_the_same_packed(tmp_path):
    data = [
        e | {"completion": " ".join(e["completion"].split()[: 2 + n % 5]), "r": n - 20.0}
        for n, e in enumerate(EXAMPLES)
    ]
    for settings in ({"objective": "dco", "attempts": 10**6}, {"objective": "a_lol", "score": "r"}):
        losses = []
        for packing in (False, True):
            stage = warmup(data=data, steps=3, batch_size=40, packing=packing, max_tokens=700, **settings)
            Recipe([stage]).run(llama(), TOKENIZER, tmp_path / f"{settings['objective']}{packing}")
            losses.append([line["loss"] for line in log_of(tmp_path / f"{settings['objective']}{packing}")])
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("Mamba", {"state_size": 4}),
        ("Mamba2", {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 4}),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}),
        ("Qwen3Next", {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8, "num_experts": 0,
                       "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
                       "linear_value_head_dim": 8}),
    ],
)  # fmt: skip
def test_models_that_read_across_sequences_are_refused_by_name(tmp_path, name, more):
    model = build(name, **more)
    with pytest.raises(TrainError, match=rf"warmup.packing: {name}ForCausalLM (does not keep|takes no position_ids)"):
        Recipe([warmup(packing=True)]).run(model, TOKENIZER, tmp_path)
    assert model.training


def test_a_leak_is_measured(monkeypatch):
    model = llama()
    forward = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda position_ids, **kw: forward(**kw))  # positions run on
    with pytest.raises(TrainError, match=r"LlamaForCausalLM does not keep .* off by \d+\.\d% of the largest"):
        check_packing(model, "warmup")


def test_what_packing_saves():
    """Padding in an epoch of 2,048 examples whose lengths spread as those of chats do (median 148 tokens, log-normal):
    of batches drawn at random, of those of similar lengths, and of packed ones drawn at random, by size of the batch.
    docs/stages.md has these figures."""
    rng = random.Random(0)
    pairs = [([1], [2] * max(1, int(rng.lognormvariate(5, 0.8)))) for _ in range(2048)]

    def padding(cut, size, window):
        buckets = LengthBuckets(pairs, size, 0, window)
        batches = [b for step in range(buckets.per_epoch) for b in cut(pairs, buckets[step], 0, 8192)]
        return round(1 - sum(int(b.attention.sum()) for b in batches) / sum(b.inputs.numel() for b in batches), 2)

    ways = ((micro_batches, 1), (micro_batches, 32), (packed_batches, 1))
    assert [[padding(cut, size, window) for cut, window in ways] for size in (8, 32, 128)] == [
        [0.6, 0.07, 0.15],
        [0.48, 0.04, 0.06],
        [0.26, 0.03, 0.02],
    ]
