"""A checkpoint is believed only if its files are what was written, and its tensors those of the model at hand."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.mixtures import mixture_of
from tests.support.tiny import TOKENIZER, Killed, killer, llama, log_of, same, warmup, weights
from warpup.train import Recipe, TrainError, checkpoint, newest_model
from warpup.train.model.precision import in_bfloat16

pytestmark = pytest.mark.usefixtures("one_thread")


def stopped(out):
    """A run that was killed after its checkpoint; the checkpoint."""
    with pytest.raises(Killed):
        Recipe([warmup(steps=4)]).run(llama(), TOKENIZER, out, report=killer(4))
    return checkpoint.latest(out / "1-warmup")


def resume(out):
    return Recipe([warmup(steps=4)]).run(llama(), TOKENIZER, out)


def sealed(folder):
    """The folder's state written anew, as if the files in it had been saved so."""
    state = json.loads((folder / "trainer.json").read_text())
    (folder / "trainer.json").unlink()
    checkpoint.write_state(folder, {k: v for k, v in state.items() if k not in ("versions", "files", "checksum")})


def changed(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def test_what_was_saved_for_another_model_is_refused(tmp_path):
    folder = stopped(tmp_path / "run")

    def refused(file, change, message):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        copy = tmp_path / "copy" / "1-warmup" / folder.name
        changed(copy / file, change)
        sealed(copy)
        with pytest.raises(TrainError, match=message):
            resume(tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")

    moment = "optimizer.0.exp_avg"

    def halved(tensors):
        tensors[moment] = tensors[moment].half()

    def shorter(tensors):
        tensors[moment] = tensors[moment][:1].clone()

    refused("trainer.safetensors", halved, r"trainer.safetensors: 0.exp_avg is torch.float16 .*torch.float32")
    refused("trainer.safetensors", shorter, r"trainer.safetensors: 0.exp_avg is torch.float32 \(1, 32\), expected")
    refused("trainer.safetensors", lambda t: t.pop(moment), "trainer.safetensors: missing is 0.exp_avg")
    more = {"optimizer.99.exp_avg": torch.ones(2)}
    refused("trainer.safetensors", lambda t: t.update(more), "trainer.safetensors: not expected is 99.exp_avg")
    lost = "model.layers.0.mlp.up_proj.weight"
    refused("model.safetensors", lambda t: t.pop(lost), rf"step-00000003: its files lack {lost}")


def test_the_folder_s_number_is_the_step(tmp_path):
    folder = stopped(tmp_path)
    folder.rename(folder.with_name("step-00000002"))
    with pytest.raises(TrainError, match=r"step-00000002.trainer.json is that of step 3, and its folder is called"):
        resume(tmp_path)


def test_copies_beside_a_checkpoint_are_none(tmp_path):
    folder = stopped(tmp_path)
    shutil.copytree(folder, folder.with_name("step-00000050.bak"))
    assert checkpoint.latest(folder.parent) == folder
    assert newest_model(tmp_path) == folder
    resume(tmp_path)
    assert (folder.with_name("step-00000050.bak") / "trainer.json").exists()  # and left where they are


def test_other_versions_are_said(tmp_path, monkeypatch, capsys):
    stopped(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "same")
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    model = resume(tmp_path / "run")
    monkeypatch.undo()
    [said] = [line["message"] for line in log_of(tmp_path / "run") if line.get("event") == "version_changes"]
    assert said.endswith(", now 9.9.9): not exact")
    assert "step-00000003: resumed under other versions (torch: there" in capsys.readouterr().err
    assert same(weights(resume(tmp_path / "same")), weights(model))
    assert "versions" not in capsys.readouterr().err


def test_a_full_disk_names_the_checkpoint(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(TrainError, match=r"cannot write .*1-warmup.step-00000003: No space left on device"):
        resume(tmp_path)
    assert not list((tmp_path / "1-warmup").glob("step-*"))


def test_the_newest_model_is_that_of_the_last_stage(tmp_path):
    for name in ("9-warmup", "10-rlvr"):  # in the order of numbers, not of texts
        (tmp_path / name / "step-00000001").mkdir(parents=True)
        (tmp_path / name / "step-00000001" / "trainer.json").write_text("{}")
    assert newest_model(tmp_path).parent.name == "10-rlvr"


def test_transposed_weights_and_moments_come_back_as_they_were(tmp_path):
    """safetensors writes the memory of an array in its order, whatever its strides say."""

    def trained():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2, bias=False)
        layer.weight = torch.nn.Parameter(torch.arange(6.0).view(3, 2).t())
        optimizer = torch.optim.Adam(layer.parameters())
        layer(torch.rand(4, 3)).sum().backward()
        optimizer.step()
        return layer, optimizer

    layer, optimizer = trained()
    generator = torch.Generator().manual_seed(0)
    moment = optimizer.state[layer.weight]["exp_avg"]
    assert not layer.weight.is_contiguous()
    assert not moment.is_contiguous()
    saved = checkpoint.save(tmp_path, 1, layer, None, optimizer, generator, {})
    other, again = trained()
    with torch.no_grad():
        other.weight.zero_()
    again.state[other.weight]["exp_avg"].zero_()
    assert checkpoint.restore(saved, other, again, generator)["step"] == 1
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(again.state[other.weight]["exp_avg"], moment)


def test_weights_of_several_dtypes_come_back_exactly(tmp_path):
    """transformers reads all in one dtype, but keeps this model's routers in float32, whatever they were saved in."""
    saved, read = (in_bfloat16(mixture_of("deepseek_v3")) for _ in range(2))
    torch.manual_seed(1)
    for model in (saved, read):
        model.lm_head.weight.data = torch.randn(model.lm_head.weight.shape)
        model.model.norm.weight.data.normal_()
    assert saved.model.layers[1].mlp.gate.weight.dtype == torch.bfloat16
    checkpoint.save_model(saved, None, tmp_path / "model")
    assert not same(weights(read), weights(saved))
    checkpoint.load_weights(read, tmp_path / "model")
    assert same(weights(read), weights(saved))
    assert [t.dtype for t in read.state_dict().values()] == [t.dtype for t in saved.state_dict().values()]
