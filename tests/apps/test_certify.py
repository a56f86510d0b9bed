"""Certified training: learning, resuming bit for bit, the command and its report."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from warpup import cli
from warpup.train import CertifiedTraining, Images, Interrupted, TrainError, certify_run, load_images
from warpup.train.certify import errors

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = CertifiedTraining(eps=0.1, epochs=6, batch_size=16, start=1, warmup=2, lr=5e-3, points=3, save_every=2)


def stripes(count=96, seed=0, size=4) -> Images:
    """Images of one bright row or column among noise; the class is which row or column it is."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (count,), generator=generator)
    x = 0.3 * torch.rand(count, 1, size, size, generator=generator)
    for image, label in zip(x, y.tolist(), strict=True):
        (image[0, label % 2 * 2] if label < 2 else image[0, :, label % 2 * 2]).add_(0.7)
    return Images("stripes", x[32:], y[32:], x[:32], y[:32])


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4),
    )  # fmt: skip


@pytest.mark.parametrize("bounds", ["ibp", "crown-ibp", "sabr"])
def test_training_certifies(bounds, tmp_path):
    data, model = stripes(), net()
    settings = replace(QUICK, epochs=16, bounds=bounds, kappa=0.2 if bounds == "ibp" else 0, shrinkage=0.9)
    found = settings.fit(model, data, tmp_path, attack=True)
    assert found["verified"] <= 0.4
    assert found["broken"] == 0
    assert not model.training
    for at in found["curve"]:
        assert at["clean"] <= at["pgd"] <= at["verified"]
        assert at["broken"] == 0
    verified = [at["verified"] for at in found["curve"]]
    assert verified == sorted(verified)
    assert found["curve"][6]["eps"] == pytest.approx(settings.eps)
    assert found["curve"][0]["clean"] == found["clean"] == errors(model, data, 0.01)["clean"]


def test_errors_by_hand():
    """A linear model of one pixel: x > .5 is class 1, so an image is verified if it is farther than eps from there."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0], [1.0]]))
        model[1].bias.copy_(torch.tensor([0.5, 0.0]))
    x = torch.tensor([0.1, 0.45, 0.55, 0.9, 0.98, 0.3]).view(-1, 1, 1, 1)
    y = torch.tensor([0, 0, 1, 1, 0, 1])
    found = errors(model, Images("pixels", x, y, x, y), 0.1, attack=True)
    assert found == {"clean": 2 / 6, "pgd": 4 / 6, "verified": 4 / 6, "broken": 0}


def test_the_box_stays_in_the_range_of_pixels():
    data = replace(stripes(), mean=torch.full((1, 1, 1), 0.5), std=torch.full((1, 1, 1), 0.25))
    x = torch.tensor([0.0, 0.05, 0.5, 1.0]).view(1, 1, 2, 2)
    center, radius = data.box(x, 0.1)
    low, high = ((center + sign * radius) * 0.25 + 0.5 for sign in (-1, 1))
    torch.testing.assert_close(low.flatten(), torch.tensor([0.0, 0.0, 0.4, 0.9]))
    torch.testing.assert_close(high.flatten(), torch.tensor([0.1, 0.15, 0.6, 1.0]))
    assert (data.box(x, 1e-12)[1] > 0).all()


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop", [Stop, "signal"])
def test_resuming_is_bitwise(stop, tmp_path, monkeypatch):
    data = replace(stripes(), augment=True)
    whole, model = net(), net()
    settings = replace(QUICK, bounds="sabr")
    expected = settings.fit(whole, data, tmp_path / "whole", seed=3)

    def interrupt(stage, step, steps, numbers):
        if step == 3:
            if stop is Stop:
                raise Stop
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stop if stop is Stop else Interrupted):
        settings.fit(model, data, tmp_path / "parts", seed=3, report=interrupt)
    torch.rand(7)  # another process has other random states
    resumed = net()
    found = settings.fit(resumed, data, tmp_path / "parts", seed=3)
    assert {k: v for k, v in found.items() if k != "seconds"} == {k: v for k, v in expected.items() if k != "seconds"}
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    logs = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "parts")]
    one, other = ([{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in log] for log in logs)
    assert one == other
    assert [line["step"] for line in one] == [1, 2, 3, 4, 5, 6]
    assert [line["eps"] for line in one] == pytest.approx([0, one[1]["eps"], 0.1, 0.1, 0.1, 0.1])
    assert {"clean", "verified", "width_1", "width_2"} <= set(one[-1])

    monkeypatch.setattr(CertifiedTraining, "train", None)  # a finished run is only loaded
    again = net()
    assert settings.fit(again, data, tmp_path / "parts", seed=3) == found
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())
    assert settings.fit(net(), data, tmp_path / "parts", seed=3, attack=True)["broken"] == 0
    with pytest.raises(TrainError, match=r"holds another run \(eps: there 0.1, now 0.2\)"):
        replace(settings, eps=0.2).fit(net(), data, tmp_path / "parts", seed=3)
    with pytest.raises(TrainError, match=r"holds another run \(data: "):
        settings.fit(net(), replace(data, y_test=data.y_test.flip(0)), tmp_path / "parts", seed=3)


WRONG = [
    ({"eps": 0.0}, "certify.eps: expected more than 0, got 0.0"),
    ({"eps": 2.0}, r"certify.eps: pixels are in \[0, 1\], got 2"),
    ({"warmup": 6}, "start 1 and warm-up 6 must fit into the 6 epochs"),
    ({"batch_size": 100}, "certify.batch_size: 100 is more than the 64 images"),
    ({"kappa": 1.5}, r"expected kappa in \[0, 1\] and a regulariser of at least 0, got 1.5 and 0.5"),
    ({"shrinkage": 1.5}, "certify.shrinkage: expected above 0 and at most 1, got 1.5"),
    ({"epochs": 0}, "certify.epochs: expected more than 0"),
    ({"lr": 1e30, "init": False, "clip": 0.0}, "the loss is .* in epoch .*; a longer warm-up, a lower learning rate"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_wrong_settings(change, message, tmp_path):
    with pytest.raises(TrainError, match=message):
        replace(QUICK, **change).fit(net(), stripes(), tmp_path)


def test_labels_beyond_the_outputs(tmp_path):
    data = stripes()
    with pytest.raises(TrainError, match="the model has 4 outputs, the labels go up to 4"):
        QUICK.fit(net(), replace(data, y_test=data.y_test + 1), tmp_path)


# ---- the command


def call(capsys, *given):
    code = cli.main(["certify", *map(str, given)])
    out, err = capsys.readouterr()
    return code, out, err.splitlines()[-1] if err else ""


@pytest.fixture
def small(tmp_path, monkeypatch):
    """stripes() as a .npz file, and flags for a run of a second."""
    data = stripes()
    np.savez(
        tmp_path / "stripes.npz", **{k: getattr(data, k).numpy() for k in ("x_train", "y_train", "x_test", "y_test")}
    )
    monkeypatch.chdir(tmp_path)
    return ("--width", 2, "--hidden", 8, "--epochs", 4, "--start", 1, "--warmup", 1, "--batch-size", 32, "--jobs", 1)


def test_command_trains_reports_and_reuses(small, capsys, monkeypatch):
    flags = ("stripes.npz", *small, "--eps", 0.05, "--seeds", 2, "--attack", "--out", "run")
    code, out, error = call(capsys, *flags)
    assert code == 0, error
    assert "PGD broke 0 of the verified images" in out
    assert "report: run/report.html" in out
    assert "verified %" in out
    page = Path("run/report.html").read_text()
    assert page.count("<svg") == 3
    assert "http" not in page
    assert all(Path(f"run/figure-{i}.png").read_bytes().startswith(b"\x89PNG") for i in (1, 2, 3))
    numbers = [json.loads(path.read_text()) for path in sorted(Path("run").rglob("results.json"))]
    mean = 50 * sum(run["verified"] for run in numbers)
    assert f"<td>{mean:.1f} ±" in page
    config = json.loads(next(Path("run").rglob("config.json")).read_text())
    assert (config["eps"], config["batch_size"], config["decay"]) == (0.05, 32, [50 / 70, 60 / 70])  # MNIST's preset

    monkeypatch.setattr(CertifiedTraining, "train", None)
    assert call(capsys, *flags)[1].split("report:")[0] == out.split("report:")[0]


def test_ablation_has_four_arms_at_two_eps(small, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    quick = replace(QUICK, epochs=2, start=0, warmup=1)
    monkeypatch.setattr(certify_run, "ABLATION", (replace(quick, eps=0.05), replace(quick, eps=0.1)))
    monkeypatch.setattr(certify_run, "SMALL", certify_run.Net(2, 8))
    digits = load_images("digits")
    few = replace(digits, x_train=digits.x_train[:64], y_train=digits.y_train[:64] % 10)
    monkeypatch.setattr(certify_run, "load_images", lambda source: few)
    code, out, error = call(capsys, "--ablation", "--jobs", 1, "--out", "run")
    assert code == 0, error
    for name, (_, _, weight) in certify_run.PARTS.items():
        assert sum(f"  {name}  " in line for line in out.splitlines()) == 2
        assert weight == (0.5 if "regularisers" in name else 0)
    assert "2.9 / 10.9 ±1.0" in out
    assert Path("run/report.html").read_text().count("<svg") == 6
    parameters = [json.loads(path.read_text())["parameters"] for path in Path("run").rglob("results.json")]
    assert len(parameters) == 8
    assert len(set(parameters)) == 2  # with and without batch normalisation


WRONG_CALLS = [
    (("nowhere",), "no file or directory nowhere; expected 'digits'"),
    (("empty",), "nothing known in empty; expected 'digits'"),
    (("--eps", 0.1, "digits"), "Unrecognized options: digits; an option takes one value, and DATA comes before"),
    (("--eps", 0.1, 0.2), "Unrecognized options: 0.2; an option takes one value"),
    (
        ("--eps", "0.1,0.2"),
        "Error parsing --eps: could not convert string to float: '0.1,0.2'; `warpup certify --help`",
    ),
    (("--eps", -0.1), "certify.eps: expected more than 0, got -0.1"),
    (("--eps", "nan"), "certify.eps: expected more than 0, got nan"),
    (("--eps", 8), "pixels are in [0, 1], got 8 (8/255 is 0.031)"),
    (("--width", 0), "--width: expected at least 1, got 0"),
    (("--hidden", -1), "--hidden: expected at least 1, got -1"),
    (("--seeds", 0), "--seeds: expected at least 1, got 0"),
    (("--jobs", -2), "--jobs: expected at least 0, got -2"),
    (("--device", "cude"), "--device: expected cpu"),
    (("stripes.npz", "--device", "cuda:77"), "--device: expected cpu"),
    (("stripes.npz", "--ablation"), "--ablation: its settings are those of the digits, got the data stripes.npz"),
    (("--ablation", "--eps", 0.1), "--ablation has settings of its own: Unrecognized options: --eps, 0.1"),
    (("--ablation", "--no-batch-norm"), "--ablation has settings of its own: Unrecognized options: --no-batch-norm"),
    (("--ablation", "--jobs", -1), "--jobs: expected at least 0, got -1"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_CALLS, ids=[message[:40] for _, message in WRONG_CALLS])
def test_wrong_calls_end_in_one_line(small, capsys, arguments, message):
    Path("empty").mkdir()
    code = cli.main(["certify", *map(str, arguments)])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1), error
    assert error.startswith("warpup certify: ")
    assert message in error
    assert not Path("runs").exists()  # nothing was begun


def test_digits_without_scikit_learn(small, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    code, _, error = call(capsys, *small)
    assert (code, error) == (1, "warpup certify: the digits need scikit-learn: pip install 'scikit-learn>=1.3'")
