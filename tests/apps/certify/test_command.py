"""`warpup certify`: the command, its report and its reuse."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.stripes import QUICK, stripes
from warpup import cli
from warpup.apps.certify import CertifiedTraining, arms, load_images
from warpup.apps.certify.report import figures, front

pytestmark = pytest.mark.usefixtures("one_thread")


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
    monkeypatch.setattr(arms, "ABLATION", (replace(quick, eps=0.05), replace(quick, eps=0.1)))
    monkeypatch.setattr(arms, "SMALL", arms.Net(2, 8))
    digits = load_images("digits")
    few = replace(digits, x_train=digits.x_train[:64], y_train=digits.y_train[:64] % 10)
    monkeypatch.setattr(arms, "load_images", lambda source: few)
    code, out, error = call(capsys, "--ablation", "--jobs", 1, "--out", "run")
    assert code == 0, error
    for name, (_, _, weight) in arms.PARTS.items():
        assert sum(f"  {name}  " in line for line in out.splitlines()) == 2
        assert weight == (0.5 if "regularisers" in name else 0)
    assert Path("run/report.html").read_text().count("<svg") == 8
    parameters = [json.loads(path.read_text())["parameters"] for path in Path("run").rglob("results.json")]
    assert len(parameters) == 8
    assert len(set(parameters)) == 2  # with and without batch normalisation


def test_a_sweep_of_alpha_marks_the_pareto_front(small, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    flags = ("stripes.npz", *small, "--eps", 0.05, "--out", "run")
    code, out, error = call(capsys, *flags, "--alphas", 0.01, 1)
    assert code == 0, error
    marked = {}
    for alpha in (0.01, 1):
        run = json.loads(
            (Path("run/eps-0.05") / f"MTL-IBP-alpha-{alpha}".replace(".", "-") / "seed-0/results.json").read_text()
        )
        [line] = [line for line in out.splitlines() if f"MTL-IBP alpha {alpha:g} " in line]
        marked[line.rstrip().endswith("*")] = (run["clean"], run["verified"])
    assert marked[True] <= marked.get(False, (1, 1))
    assert "Pareto front" in out
    page = Path("run/report.html").read_text()
    assert "<th>front</th>" in page
    assert page.count("<svg") == 4
    assert "Pareto front, trained for 0.05" in page
    code, _, error = call(capsys, *flags, "--alphas", 0.5, "--bounds", "mtl-ibp")
    assert (code, "leave those out" in error) == (2, True)


def test_more_arms_than_colors_are_drawn(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "certify", "step": 1, "verified": 0.5, "width_1": 1.0}\n')
    curve = [{"eps": 0.1, "clean": 0.1, "verified": 0.5}]
    arms = [(f"arm {i}", 0.1 * i, 1 - 0.1 * i) for i in range(9)]
    results = [
        {"arm": arm, "eps": 0.1, "clean": c, "verified": v, "folder": str(tmp_path), "curve": curve}
        for arm, c, v in arms
    ]
    drawn = figures(results)
    [axes] = drawn["Pareto front, trained for 0.1"].axes
    edge = axes.lines[0].get_xydata()
    assert edge.flatten().tolist() == pytest.approx([100 * error for arm in arms for error in arm[1:]])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [arm for arm, _, _ in arms]


def test_the_front_by_hand():
    runs = {
        ("a", 1): (0.1, 0.5),
        ("b", 1): (0.2, 0.3),
        ("c", 1): (0.2, 0.4),
        ("d", 1): (0.1, 0.5),
        ("e", 2): (0.9, 0.9),
    }
    groups = {(eps, arm): [{"clean": c, "verified": v}] for (arm, eps), (c, v) in runs.items()}
    assert front(groups) == {(1, "a"), (1, "b"), (1, "d"), (2, "e")}


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
