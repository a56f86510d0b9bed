"""`warpup continual`: old tasks keep what was certified, a stopped run goes on bit for bit, errors are one line."""

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from warpup import cli
from warpup.apps._digits import load_digits_split
from warpup.apps.continual import learners, report
from warpup.apps.continual.command import run_continual
from warpup.apps.continual.run import broken, run_method
from warpup.apps.continual.settings import METHODS, ContinualArguments, Settings
from warpup.interval.weights.interval_weights import certified
from warpup.train import TrainError
from warpup.train.log import quiet

pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = Settings(hidden=16, steps=60, scale_steps=80)


class Killed(BaseException):
    """A kill: nothing catches it."""


def killer(tasks):
    """A report that ends the process, so to say, once so many tasks are done."""

    def report(stage, step, steps, numbers):
        if "accuracy" in numbers and step * learners.PAIRS // steps == tasks:
            raise Killed

    return report


def call(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One short run of each method: its numbers, and the folder of its checkpoints."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs")
    found = {m: (run_method(m, 0, SHORT, out / m, quiet), out / m) for m in METHODS}
    torch.set_num_threads(before)
    return found


def test_digits_are_split_whole_and_by_seed():
    x, y, test_x, test_y = load_digits_split(3)
    assert (len(x), len(test_x), x.shape[1]) == (1437, 360, 64)
    assert (x.min(), x.max(), x.dtype, y.dtype) == (0, 1, torch.float32, torch.int64)
    whole = torch.cat([x, test_x])
    other = torch.cat(load_digits_split(4)[::2])
    assert torch.equal(whole.sum(0), other.sum(0))
    assert not torch.equal(whole, other)
    assert torch.equal(test_x, load_digits_split(3)[2])
    assert torch.cat([y, test_y]).bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_tasks_are_pairs_of_digits():
    _, y, _, test_y = load_digits_split(1)
    for scenario, heads in (("task", [slice(2 * t, 2 * t + 2) for t in range(5)]), ("domain", [slice(None)] * 5)):
        tasks = learners.tasks_of(replace(SHORT, scenario=scenario), 1)
        assert [task.head for task in tasks] == heads
        assert [task.name for task in tasks] == ["0 / 1", "2 / 3", "4 / 5", "6 / 7", "8 / 9"]
        for number, task in enumerate(tasks):
            assert task.y.sum() == (y == 2 * number + 1).sum()
            assert len(task.y) == sum((y == digit).sum() for digit in (2 * number, 2 * number + 1))
            assert len(task.test_y) == sum((test_y == digit).sum() for digit in (2 * number, 2 * number + 1))


def test_the_guarantee_holds_and_says_something(runs):
    for method, least in (("intercontinet", 0.7), ("hyperinterval", 0.7)):
        found, _ = runs[method]
        assert broken(found) == []
        assert [len(row) for row in found["certified"]] == [1, 2, 3, 4, 5]
        final = found["certified"][-1]
        assert sum(final) / 5 > least, (method, final)  # chance is .5
    found, _ = runs["intercontinet"]
    for then in range(5):  # nested: no certificate is ever lost
        for now in range(then, 5):
            for task in range(then + 1):
                assert found["certified"][now][task] >= found["certified"][then][task]
                assert found["measured"][4][task] >= found["certified"][then][task]
    assert not any(sum(row) for row in runs["finetune"][0]["certified"])


@pytest.mark.parametrize("method", ["intercontinet", "hyperinterval"])
def test_certified_images_are_right_under_every_network_that_is_covered(runs, method):
    """Image by image, with networks drawn from the boxes rather than the one that was trained."""
    found, out = runs[method]
    task, generator = learners.tasks_of(SHORT, 0)[0], torch.Generator().manual_seed(0)
    x, y = task.test_x.double(), task.test_y
    torch.manual_seed(0)
    learner = learners.LEARNERS[method](SHORT, 10)

    def after(tasks):
        learner.module.float().load_state_dict(load_file(out / f"step-{tasks:08d}" / "model.safetensors"))
        exact = copy.copy(learner)
        exact.module = copy.deepcopy(learner.module).double()
        return exact

    then = after(1) if method == "intercontinet" else after(5)
    center, radius, _ = (end[:, task.head] for end in then.logits(x, 0, 1))
    sure = certified(center, radius, y)
    assert sure.double().mean() == found["certified"][0 if method == "intercontinet" else -1][0]
    if method == "intercontinet":  # every later network, and any of the box: center and corners through .outer()
        for tasks in range(1, 6):
            assert (after(tasks).logits(x, 0, tasks)[2][:, task.head].argmax(1) == y)[sure].all()
        boxes = [box for box in then.module.modules() if hasattr(box, "outer")]
        ends = [(box.lower.clone(), box.upper.clone()) for box in boxes]
        for _ in range(20):
            for box, (lower, upper) in zip(boxes, ends, strict=True):
                high = torch.rand(lower.shape, generator=generator) < 0.5
                corner = torch.where(high, upper, lower)
                box.lower.copy_(corner)
                box.upper.copy_(corner)
            assert (then.module(x)[0][:, task.head].argmax(1) == y)[sure].all()
    else:
        hyper = then.module
        c, r = hyper.embedding_box(0)
        network = hyper.universal()
        for _ in range(20):
            draw = torch.rand(c.shape, generator=generator, dtype=torch.float64).sub(0.5).sign()
            torch.nn.utils.vector_to_parameters(hyper.hyper((c + r * draw)[None])[0], network.parameters())
            assert (network(x)[:, task.head].argmax(1) == y)[sure].all()
        assert (hyper.universal()(x)[:, task.head].argmax(1) == y)[sure].all()


def test_a_broken_certificate_is_told():
    found = {
        "method": "intercontinet", "seed": 2, "tasks": ["0 / 1", "2 / 3"],
        "measured": [[1.0], [0.7, 0.9]], "certified": [[0.8], [0.7, 0.9]],
    }  # fmt: skip
    assert broken(found) == [
        "intercontinet, seed 2: digits 0 / 1 certified to 0.8000 after 1 tasks, measured 0.7000 after 2"
    ]
    assert broken(found | {"method": "hyperinterval"}) == []  # it promises nothing of later networks
    assert broken(found | {"certified": [[0.8], [0.7, 0.95]], "method": "hyperinterval"}) == [
        "hyperinterval, seed 2: digits 2 / 3 certified to 0.9500 after 2 tasks, measured 0.9000 after 2"
    ]


@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed_equals_uninterrupted(runs, method, tmp_path):
    whole, folder = runs[method]
    with pytest.raises(Killed):
        run_method(method, 0, SHORT, tmp_path, killer(2))
    assert len(list(tmp_path.glob("step-*"))) == 2
    torch.rand(5)  # whatever else the process drew
    again = run_method(method, 0, SHORT, tmp_path, quiet)
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}
    last = "step-00000005/model.safetensors"
    one, other = load_file(folder / last), load_file(tmp_path / last)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_command_shows_writes_and_reuses(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("warpup.apps.continual.command.Settings", lambda scenario: replace(SHORT, scenario=scenario))
    out = tmp_path / "out"
    for method, (_, folder) in runs.items():  # already learned
        shutil.copytree(folder, out / "seed-0" / method)
    code, text, _ = call(capsys, "continual", "--out", out, "--jobs", 1)
    assert code == 0
    for word in (*METHODS, "when learned", "certified", "after the last", "mean", "every later network"):
        assert word in text, text
    assert max(map(len, text.splitlines()[:-1])) <= 80
    found = json.loads((out / "continual.json").read_text())
    assert [run["method"] for run in found] == list(METHODS)
    value = 100 * found[0]["certified"][-1][0]
    assert any(line.split()[-1:] == [f"{value:.1f}"] for line in text.splitlines() if "0 / 1" in line)
    assert (out / "continual.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(learners.Finetune, "learn", None)  # a second call must not train
    monkeypatch.setattr(learners.InterContiNet, "learn", None)
    monkeypatch.setattr(learners.Hyper, "learn", None)
    assert call(capsys, "continual", "--out", out, "--jobs", 1)[1] == text
    code, _, error = call(capsys, "continual", "--out", out, "--scenario", "domain", "--jobs", 1)
    assert code == 1
    assert "holds another run (scenario: there task, now domain)" in error

    monkeypatch.setattr("warpup.apps.continual.run.broken", lambda found: ["a lie"])
    code, _, error = call(capsys, "continual", "--out", out, "--jobs", 1)
    assert (code, error.strip().splitlines()[-1]) == (
        1,
        "warpup continual: a certificate was broken: a lie; a lie; a lie",
    )


def test_a_broken_certificate_is_caught_where_it_is_made(tmp_path, monkeypatch):
    """A later task that leaves the frozen box: the check sees it."""

    def leave(self, number, task, draw, say):
        honest(self, number, task, draw, say)
        if number == 1:
            for box in self.module.modules():
                if hasattr(box, "outer"):
                    box.lower.neg_()
                    box.upper.neg_()
                    box.lower, box.upper = box.upper.clone(), box.lower.clone()

    honest = learners.InterContiNet.learn
    monkeypatch.setattr(learners.InterContiNet, "learn", leave)
    found = run_method("intercontinet", 0, SHORT, tmp_path, quiet)
    assert broken(found)


def test_means_and_spreads():
    run = {"tasks": ["a", "b"], "measured": [[1.0], [0.9, 0.8]], "certified": [[0.7], [0.6, 0.5]]}
    assert report.numbers(run) == [(1.0, 0.7, 0.9, 0.6), (0.8, 0.5, 0.8, 0.5)]
    assert report.cell((0.5, 0.7)) == "60.0 ±14.1"
    assert report.cell((0.5,)) == "50.0"
    runs = [{"method": "intercontinet", "seed": seed, **run} for seed in range(2)]
    [axes] = report.picture(runs).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn["intercontinet, measured"] == [[1, 100], [2, pytest.approx(85)]]
    assert drawn["intercontinet, certified"] == [[1, 70], [2, pytest.approx(55)]]


def test_wrong_calls_end_in_one_line(tmp_path, capsys, monkeypatch):
    def error(*arguments, status=2):
        code, _, text = call(capsys, "continual", "--out", tmp_path / "out", *arguments)
        assert code == status
        assert (tmp_path / "out").exists() == (status == 1)
        return text

    assert "--seeds: expected at least 1, got 0" in error("--seeds", 0)
    assert "--jobs: expected at least 0, got -2" in error("--jobs", -2)
    assert "invalid choice 'ewc' for argument '--methods'" in error("--methods", "ewc")
    assert "Unrecognized options: digits; an option takes one value" in error("--seeds", 1, "digits")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # not installed
    assert "the digits need scikit-learn: pip install 'scikit-learn>=1.3'" in error("--jobs", 1, status=1)


def test_ctrl_c_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("warpup.apps.continual.run.measure", interrupt)
    monkeypatch.setattr("warpup.apps.continual.command.Settings", lambda scenario: replace(SHORT, scenario=scenario))
    code, _, error = call(capsys, "continual", "--out", tmp_path, "--methods", "finetune", "--jobs", 1)
    assert code == 130
    assert "the same command goes on after the last finished task" in error


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_finishes_the_task_and_the_same_command_goes_on(runs, tmp_path, jobs):
    """As on a terminal: every process of the group gets the signal."""
    program = (
        "import sys; from warpup import cli; from warpup.apps.continual import command, settings\n"
        f"command.Settings = lambda scenario: settings.{SHORT!r}\n"
        "if __name__ == '__main__': sys.exit(cli.main(sys.argv[1:]))\n"
    )
    (tmp_path / "short.py").write_text(program)
    command = [sys.executable, "short.py", "continual", "--out", "out", "--methods", "intercontinet", "hyperinterval"]
    command += ["--jobs", str(jobs)]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while run.poll() is None and not list(tmp_path.glob("out/seed-0/*/step-*")):
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)
    text = run.communicate(timeout=120)[1]
    assert run.returncode == 130, text
    assert "Traceback" not in text
    found = re.search(r"(\w+), seed 0: stopped and saved after task (\d) of 5; the same command goes on from", text)
    assert found, text
    assert (tmp_path / f"out/seed-0/{found[1]}/step-0000000{found[2]}").exists()
    if jobs > 1:
        return
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    for result in json.loads((tmp_path / "out/continual.json").read_text()):  # as if it had not been stopped
        assert {**result, "seconds": 0} == {**runs[result["method"]][0], "seconds": 0}


def test_no_methods_is_an_error(tmp_path):
    with pytest.raises(TrainError, match="--methods: expected some of intercontinet"):
        run_continual(ContinualArguments(str(tmp_path), methods=()))
