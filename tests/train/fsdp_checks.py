"""What each of two processes does in test_fsdp.py, with the model in shards."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from tests.support.processes import become, run_checks
from tests.support.tiny import EXAMPLES, TOKENIZER, Killed, killer, llama, mixture, rlvr, warmup
from tests.train.rank_checks import PAIRS, words
from warpup.train import Preference, Recipe, TrainError, checkpoint
from warpup.train.model.fsdp import full_state, is_sharded, load_state, own_tensors, shard_model, whole
from warpup.train.model.lora import add_adapters
from warpup.train.model.precision import computing
from warpup.train.model.reference import Snapshot
from warpup.train.ranks import data_parallel, rank
from warpup.train.run import HeldOut
from warpup.train.settings import LoRA


def small(**overrides):
    """With an odd number of rows in some weights, and one that is embedding and output layer."""
    return llama(hidden_size=36, intermediate_size=65, tie_word_embeddings=True, **overrides)


def adapted():
    """Half of the adapters' weights have a single row, so that the second rank has nothing of them."""
    return add_adapters(llama(), LoRA(r=1, targets=("q_proj", "down_proj")))


def recipes():
    """By name: what makes a model, and stages for it. `max_tokens` is such that the ranks have other numbers of
    batches, of which some have none."""
    return {
        "warmup": (small, lambda: [warmup(batch_size=5, max_tokens=40)]),
        "packed": (llama, lambda: [warmup(steps=4, batch_size=1, packing=True)]),
        "rlvr": (llama, lambda: [rlvr(steps=4, lr=1e-4, minibatches=2, kl_coef=0.1, kl="full", max_tokens=60)]),
        "critic": (llama, lambda: [rlvr(steps=3, lr=1e-4, value_lr=1e-4, advantage="gae", kl_coef=0.1,
                                        kl_in_reward=True, reference_sync=2, max_tokens=60)]),
        "preference": (small, lambda: [Preference(data=PAIRS, steps=4, batch_size=3, lr=1e-3, max_tokens=90)]),
        "mixture": (mixture, lambda: [warmup(steps=4, batch_size=5, balance=0.1, max_tokens=60)]),
        "adapters": (adapted, lambda: [warmup(steps=4)]),
    }  # fmt: skip


SAMPLED = ("rlvr", "critic")
HELD = HeldOut(EXAMPLES[:3], words, points=2, samples=2, max_new_tokens=6)


def trained(name, folder, report=None):
    """As in rank_checks.py: in float64 unless completions are sampled."""
    make, stages = recipes()[name]
    model = make() if name in SAMPLED else make().double()
    options = {"held_out": HELD} if name == "rlvr" else {}
    options |= {"report": report} if report else {}
    Recipe(stages(), fsdp=True, gradient_checkpointing=name == "preference").run(
        model, TOKENIZER, folder / name, **options
    )
    return model


def check_runs(folder):
    for name in recipes():
        model = trained(name, folder / "two")
        assert is_sharded(model)


def check_resumed(folder):
    """Killed in its third step, a run ends with the bits of one that was not."""
    with pytest.raises(Killed):
        trained("critic", folder / "resumed", killer(3))
    assert checkpoint.step_of(checkpoint.latest(folder / "resumed" / "critic" / "1-rlvr")) == 2
    trained("critic", folder / "resumed")
    files = [folder / run / "critic" / "model" / "model.safetensors" for run in ("two", "resumed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def check_goes_on_from_one(folder):
    """What one process has stopped, two end."""
    trained("warmup", folder / "one")


def check_shards(folder):
    """Each rank has its part alone, of weights, gradients and a snapshot; the whole comes back bit for bit."""
    plain, model = small(), small()
    shard_model(model)
    held = own_tensors(model)
    assert all(isinstance(tensor, DTensor) for tensor in held.values())
    mine = sum(tensor.to_local().numel() for tensor in held.values())
    assert mine <= 0.6 * sum(parameter.numel() for parameter in plain.parameters())
    ids = torch.arange(6).view(1, 6)
    with whole(model), torch.no_grad():
        if rank() == 0:  # alone, and as often as it likes
            assert torch.equal(model(ids).logits, plain(ids).logits)
            assert torch.equal(model(ids).logits, plain(ids).logits)
    with computing(model, torch.bfloat16):  # casts of all weights, kept at once, would be the whole model
        assert not torch.is_autocast_cache_enabled()
    snapshot = Snapshot(model)
    model(ids).logits.sum().backward()
    plain(ids).logits.sum().backward()
    for parameter, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.full_tensor(), 2 * wanted.grad, msg="two ranks, two times the rows")
    with torch.no_grad():
        before = model(ids).logits
        for tensor in held.values():
            tensor.mul_(2)
        with snapshot.restored():
            assert torch.equal(model(ids).logits, before)
        assert not torch.equal(model(ids).logits, before)
    load_state(own_tensors(model), dict(plain.named_parameters()))
    state = full_state(model)
    if rank() == 0:
        assert state.keys() == plain.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())


def check_refused(folder):
    with pytest.raises(TrainError, match="merge: adapters in shards are not merged"):
        Recipe([warmup()], fsdp=True, merge=True).run(adapted(), TOKENIZER, folder / "merge")
    served = rlvr(engine="vllm", engine_url="http://localhost:1")
    with pytest.raises(TrainError, match="engine: vllm takes adapters merged into the weights, and those in shards"):
        Recipe([served], fsdp=True).run(adapted(), TOKENIZER, folder / "served")
    model = llama()
    shard_model(model)
    with pytest.raises(TrainError, match="fsdp: this model is in shards"):
        Recipe([warmup()], fsdp=True).run(model, TOKENIZER, folder / "again")
    with pytest.raises(TrainError, match="fsdp: gradients of weights in 16 bits"):
        shard_model(llama().bfloat16())


CHECKS = [name for name in globals() if name.startswith("check_")]


def main(number, world, port, folder, names):
    """Entry of a process."""
    run_checks({name: globals()[name] for name in names}, number, world, port, folder)


def one_is_killed(number, world, port, folder, names):
    """The second rank is killed after its fifth step; the last checkpoint is of the third."""
    become(number, world, port)

    def report(stage, step, steps, numbers):
        if step == 5 and number == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        with data_parallel():
            trained("warmup", Path(folder), report)
    except Exception as error:
        Path(folder, "told").write_text(f"{type(error).__name__}: {error}")
        raise
