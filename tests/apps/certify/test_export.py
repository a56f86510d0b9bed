"""ONNX and VNN-LIB files of a certified network, held against the network and its boxes."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.stripes import stripes
from warpup.apps.certify import export_questions
from warpup.apps.certify.export import property_text
from warpup.interval import bound
from warpup.train import TrainError

pytestmark = pytest.mark.usefixtures("one_thread")


def trained():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)
    )  # fmt: skip
    net(torch.rand(16, 1, 4, 4))  # statistics that are not the first ones
    return net.eval()


def test_the_network_and_its_questions(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    data = replace(stripes(), mean=torch.full((1, 1, 1), 0.3), std=torch.full((1, 1, 1), 0.4))
    model = trained()
    listed = export_questions(model, data, tmp_path / "questions", 0.05, count=3)
    rows = [line.split(",") for line in listed.read_text().splitlines()]
    assert [row[1] for row in rows] == ["image-0.vnnlib", "image-1.vnnlib", "image-2.vnnlib"]
    assert sorted(p.name for p in listed.parent.iterdir()) == sorted(
        ["model.onnx", "instances.csv", *(r[1] for r in rows)]
    )
    session = runtime.InferenceSession(str(listed.parent / rows[0][0]), providers=["CPUExecutionProvider"])
    for i in range(3):
        text = (listed.parent / rows[i][1]).read_text()
        low, high = (
            np.array([float(v) for _, v in re.findall(rf"\({sign} X_(\d+) (-?[\d.]+)\)", text)])
            for sign in (">=", "<=")
        )
        pixel = data.x_test[i].flatten().double().numpy()
        for sign, end in ((-1, low), (1, high)):
            wanted = (np.clip(pixel + sign * 0.05, 0, 1) - 0.3) / 0.4
            assert (sign * (end - wanted) >= -1e-9).all()
            assert np.abs(end - wanted).max() < 1e-5
        x = torch.from_numpy(low + (high - low) * np.random.default_rng(i).random(16)).float().view(1, 1, 4, 4)
        [y] = session.run(None, {"X": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), model(x), rtol=1e-5, atol=1e-5)
        center, radius = bound(model, *data.box(data.x_test[i : i + 1], 0.05))
        assert (np.abs(y - center.detach().numpy()) <= radius.detach().numpy() + 1e-5).all()


def test_property_by_hand():
    tiny = torch.tensor([1e-5, -0.25], dtype=torch.float64)
    text = property_text(tiny, tiny + 0.1, 1, 3)
    assert not re.search(r"\de-?\d", text)
    assert "(assert (>= X_1 -0.250000000000))" in text
    assert text.endswith("(assert (or (and (>= Y_0 Y_1)) (and (>= Y_2 Y_1))))\n")
    [low], [high] = (re.findall(rf"\({sign} X_0 (\S+)\)\)", text) for sign in (">=", "<="))
    assert Fraction(low) <= Fraction(1e-5) < Fraction(low) + Fraction(1, 10**12)
    assert Fraction(high) - Fraction(1, 10**12) < Fraction(float(tiny[0] + 0.1)) <= Fraction(high)


def test_messages(tmp_path):
    model, data = trained(), stripes()
    with pytest.raises(TrainError, match=r"export\.count: expected 1 to 32, the test images, got 33"):
        export_questions(model, data, tmp_path, 0.1, count=33)
    with pytest.raises(TrainError, match="the model is in training mode"):
        export_questions(model.train(), data, tmp_path, 0.1)
