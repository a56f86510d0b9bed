"""Certified training: learning, resuming bit for bit, the command and its report."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.support.stripes import QUICK, stripes
from warpup.apps.certify import CertifiedTraining, Images
from warpup.apps.certify.measurement import errors
from warpup.interval import margin_loss, pgd, sabr_box, taps_loss
from warpup.train import Interrupted, TrainError

pytestmark = pytest.mark.usefixtures("one_thread")


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4),
    )  # fmt: skip


@pytest.mark.parametrize("bounds", ["ibp", "crown-ibp", "sabr", "mtl-ibp", "taps", "staps"])
def test_training_certifies(bounds, tmp_path):
    data, model = stripes(), net()
    own = {"ibp": {"kappa": 0.2}, "sabr": {"shrinkage": 0.9}, "crown-ibp": {}, "mtl-ibp": {"alpha": 0.7}}
    own |= {"taps": {"taps_weight": 1.0}, "staps": {"attacked_layers": 1}}
    settings = replace(QUICK, epochs=16, bounds=bounds, **own[bounds])
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


def test_mtl_ibp_weighs_two_losses():
    """alpha of the interval bounds' loss and 1 - alpha of that at the points that PGD finds."""
    data, model = stripes(), net().eval()
    x, y = data.x_train[:16], data.y_train[:16]
    found = {}
    for alpha in (0.0, 0.3, 1.0):
        settings = replace(QUICK, bounds="mtl-ibp", alpha=alpha, regulariser=0.0, tau=0.5)
        found[alpha] = settings.loss(model, data, x, y, 0.1, torch.Generator().manual_seed(0))
    center, radius = data.box(x, 0.1)
    points = pgd(model, center, radius, y, steps=8, step_size=0.5, generator=torch.Generator().manual_seed(0))
    attacked = nn.functional.cross_entropy(model(points), y)
    assert attacked > nn.functional.cross_entropy(model(data.normal(x)), y)
    torch.testing.assert_close(found[0.0], attacked)
    torch.testing.assert_close(found[1.0], margin_loss(model, center, radius, y))
    torch.testing.assert_close(found[0.3], 0.7 * found[0.0] + 0.3 * found[1.0])


@pytest.mark.parametrize("bounds", ["taps", "staps"])
def test_taps_attacks_the_last_layers_at_the_full_eps(bounds):
    """net() has a convolution and two linear layers: the attacked part begins at the first linear layer, the fifth."""
    data, model = stripes(), net().eval()
    x, y = data.x_train[:16], data.y_train[:16]
    box, generator = data.box(x, 0.1), torch.Generator()
    settings = replace(QUICK, bounds=bounds, regulariser=0.0)
    found = settings.loss(model, data, x, y, 0.1, generator.manual_seed(0), settings.parts(model))
    grown = settings.loss(model, data, x, y, 0.05, generator.manual_seed(0), settings.parts(model))
    half = data.box(x, 0.05)
    generator.manual_seed(0)
    if bounds == "staps":
        box = sabr_box(model, *box, y, generator=generator)
        half = sabr_box(model, *half, y, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, taps_loss(model[:4], model[4:], *box, y, generator=generator))
    torch.testing.assert_close(grown, margin_loss(model, *half, y))
    with pytest.raises(TrainError, match=r"attacked_layers: .* the last 4 of its linear .*, got Sequential with 3"):
        replace(settings, attacked_layers=4).check(data, model)


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


def test_population_statistics_are_averages_over_the_training_images(tmp_path):
    """Of the first layer, which reads the images themselves: the mean of all batches' means and unbiased variances."""
    data, model = stripes(), nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 4))
    settings = replace(QUICK, epochs=2, start=0, warmup=1, population=True, init=False, regulariser=0.0)
    settings.fit(model, data, tmp_path)
    batches = data.x_train.unflatten(0, (-1, 16)).flatten(1)
    torch.testing.assert_close(model[0].running_mean, batches.mean(1).mean(0, keepdim=True))
    torch.testing.assert_close(model[0].running_var, batches.var(1).mean(0, keepdim=True))
    assert model[0].momentum == 0.1
    assert not model[0].training
    with pytest.raises(TrainError, match=r"certify\.population: the model has no batch normalisation"):
        settings.fit(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), data, tmp_path / "none")


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
    ({"shrinkage": 0.9}, "certify.shrinkage: got 0.9, but bounds 'ibp' takes no small boxes: leave it out, or choose"),
    ({"bounds": "crown-ibp", "sabr_ratio": 0.5}, "certify.sabr_ratio: got 0.5, but bounds 'crown-ibp' takes no small"),
    ({"bounds": "crown-ibp", "regulariser": 0.1}, "certify.regulariser: got 0.1, but CROWN-IBP's loss has neither"),
    ({"bounds": "crown-ibp", "kappa": 0.1}, "certify.kappa: got 0.1, but CROWN-IBP's loss has neither regularisers"),
    ({"regulariser": 0.0, "tau": 0.4}, "certify.tau: got 0.4, but it is the regularisers', whose weight is 0: leave"),
    ({"alpha": 0.3}, "certify.alpha: got 0.3, but bounds 'ibp' weigh no attacked points: leave it out, or choose"),
    ({"bounds": "mtl-ibp", "alpha": 1.5}, "certify.alpha: expected from 0 to 1, got 1.5"),
    ({"bounds": "mtl-ibp", "kappa": 0.1}, "certify.kappa: got 0.1, but MTL-IBP weighs by alpha: leave it out"),
    ({"bounds": "taps", "kappa": 0.1}, "certify.kappa: got 0.1, but TAPS's loss has no clean share: leave it out"),
    ({"bounds": "taps", "shrinkage": 0.9}, "certify.shrinkage: got 0.9, but bounds 'taps' takes no small boxes"),
    ({"bounds": "sabr", "taps_weight": 1.0}, "certify.taps_weight: got 1.0, but bounds 'sabr' attack no layer's boxes"),
    ({"bounds": "taps", "attacked_layers": 0}, "expected attacked_layers of at least 1 and a finite taps_weight"),
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
