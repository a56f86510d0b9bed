"""Without an optional package what needs it says so, and how to get it."""

import importlib
import sys

import numpy as np
import pytest
import torch

import warpup
from warpup import control, metrics, synthesis


@pytest.mark.parametrize(
    ("module", "call", "message"),
    [
        (
            "scipy.optimize",
            lambda: metrics.power_law(np.arange(1, 5), np.ones(4)),
            "power_law needs scipy: pip ins",
        ),
        (
            "scipy.optimize",
            lambda: control.target_cost(torch.ones(2), torch.ones(2), 1.0),
            "target_cost needs scipy",
        ),
        (
            "peft.tuners.lora",
            lambda: warpup.continual.lora_deltas(torch.nn.Linear(1, 1)),
            "lora_deltas needs peft",
        ),
        (
            "sklearn.cluster",
            lambda: synthesis.representatives(torch.ones(2, 1), torch.ones(2), 1),
            "needs scikit-learn: ",
        ),
    ],
)
def test_a_function(monkeypatch, module, call, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=message):
        call()


@pytest.mark.parametrize(
    ("module", "ours", "message"),
    [
        ("gymnasium", "control.wrappers", "warpup.control.wrappers needs gymnasium: pip install gymnasium"),
        ("trl", "integrations.trl", r"warpup.integrations.trl needs trl 1\.16: "),
    ],
)
def test_a_module(monkeypatch, module, ours, message):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"warpup.{ours}", raising=False)
    with pytest.raises(ImportError, match=message):
        importlib.import_module(f"warpup.{ours}")
