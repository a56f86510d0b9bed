"""The benches of methods: every arm runs and gives numbers that can be; what is kept is not run again; the page is that
of the records."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from bench.methods import __main__ as command
from bench.methods import runner
from bench.methods.picture import draw

ARMS = [(name, arm) for name in runner.names() for arm in runner.load(name).ARMS]


def quick(bench: str, arm: str, seed: int = 0) -> dict:
    return runner.measure(runner.load(bench), arm, seed, quick=True)["numbers"]


@pytest.mark.parametrize(("bench", "arm"), ARMS)
def test_an_arm_runs(bench, arm, one_thread):
    module = runner.load(bench)
    for package in module.ARMS[arm].needs:
        pytest.importorskip(package)
    for column, value in quick(bench, arm).items():  # which are finite, or it had raised
        if not isinstance(value, list) and module.COLUMNS[column].factor == 100:
            assert -1 <= value <= 1, column


def test_arms_are_compared_with_arms_of_their_own_column():
    for bench in map(runner.load, runner.names()):
        for name, arm in bench.ARMS.items():
            assert arm.by in bench.COLUMNS
            assert not arm.against or (bench.ARMS[arm.against].by == arm.by and arm.against != name)


# ---- continual ------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_numbers(one_thread):
    for arm in ("HPCR", "TAME", "known: RFT", "known: sparse masks, random growth"):
        assert quick("continual", arm) == quick("continual", arm) != quick("continual", arm, seed=1)


def test_ewc_holds_what_its_fisher_information_names(one_thread):
    from bench.methods import continual, continual_known

    class Free(continual_known.EWC):
        strength = 0.0

    class Stiff(continual_known.EWC):
        strength = 1e9

    found = []
    for learner in (continual_known.Plain, Free, Stiff):
        torch.manual_seed(0)
        found.append(continual.learn(learner, 0, continual.QUICK))
    assert found[0] == found[1] != found[2]
    stream, moved = continual.Stream(0), []
    for kind in (Free, Stiff):
        torch.manual_seed(0)
        learner = kind(stream, continual.QUICK, 0)
        for task in range(2):
            x, y = stream.train[task]
            learner.begin(task, x, y)
            for _ in range(5):
                learner.step(x[:8], y[:8])
            learner.end(x, y)
        (fisher, before), (_, after) = learner.held
        moved.append(sum((fisher[name] * (after[name] - before[name]) ** 2).sum() for name in fisher))
    assert moved[1] < 0.5 * moved[0]


def test_masks_keep_earlier_tasks_to_the_last_bit(one_thread):
    found = quick("continual", "known: sparse masks, growth by gradient")
    assert found["F"] == found["BWT"] == 0
    assert quick("continual", "known: HyperCRL") != quick("continual", "known: hypernetwork")


# ---- the runner -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Size:
    steps: int = 3


def bench(tmp_path, monkeypatch, **arms):
    """A bench of arms that are given, in place of the others; where its results go."""
    source = tmp_path / "toy.py"
    source.write_text("first")
    made = SimpleNamespace(
        SIZE=Size(), QUICK=Size(1), COLUMNS={"ACC": runner.Column(100, 1), "loss": runner.Column(1, 2)}, ARMS=arms,
        __file__=str(source),
    )  # fmt: skip
    monkeypatch.setattr(runner, "load", lambda name: made)
    monkeypatch.setattr(runner, "RUNS", tmp_path)
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results")
    return made, source


def test_what_is_kept_is_not_run_again(tmp_path, monkeypatch):
    runs = []

    def arm(seed, size):
        runs.append((seed, size.steps))
        return {"ACC": 0.5 + 0.1 * seed, "curve": [1, 2]}

    _, source = bench(tmp_path, monkeypatch, plain=runner.Arm(arm, "ACC"))
    for seeds in (2, 3, 3):
        assert runner.run("toy", seeds) == []
    assert runs == [(0, 3), (1, 3), (2, 3)]
    assert [seed["numbers"]["ACC"] for seed in runner.results("toy")["plain"]] == [0.5, 0.6, 0.7]
    source.write_text("another")
    runner.run("toy", 1)
    assert runs[3:] == [(0, 3)]
    assert [seed["numbers"]["ACC"] for seed in runner.results("toy")["plain"]] == [0.5]  # of the other code none
    runner.run("toy", 1, quick=True)
    assert runs[4:] == [(0, 1)]


def test_a_null_is_called_one(tmp_path, monkeypatch):
    def gains(*by_seed):
        return runner.Arm(lambda seed, size: {"ACC": 0.5 + by_seed[seed]}, "ACC", "plain")

    bench(
        tmp_path, monkeypatch, plain=runner.Arm(lambda seed, size: {"ACC": 0.5, "loss": 1.5}, "ACC"),
        better=gains(0.10, 0.11, 0.12), mixed=gains(0.10, -0.05, 0.12),
    )  # fmt: skip
    runner.run("toy", 3)
    heading, plain, better, mixed = runner.table(runner.summary("toy", runner.results("toy")))
    assert heading == ["arm", "ACC", "loss", "difference", "CPU s"]
    assert plain[:4] == ["plain", "50.0 ± 0.0", "1.50 ± 0.00", ""]
    # t of 2 degrees of freedom at .975 is 4.303; 4.303 * .01 / sqrt(3) = .0248
    assert better[1:4] == ["61.0 ± 1.0", "", "+11.0 (8.5 to 13.5) over plain"]
    assert mixed[3].startswith("**null** +5.7 (-17.4 to 28.7)")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"ACC": float("nan")}, "plain, seed 0: ACC is nan; expected a finite number of"),
        ({"acc": 0.5}, "plain, seed 0: acc is 0.5; expected a finite number of"),
        ({"loss": 0.5}, "plain: no ACC, by which it is judged"),
    ],
)
def test_wrong_numbers_are_refused(tmp_path, monkeypatch, numbers, message):
    bench(tmp_path, monkeypatch, plain=runner.Arm(lambda seed, size: numbers, "ACC"))
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        runner.run("toy", 1)


def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys):
    arms = {"plain": runner.Arm(lambda seed, size: {"ACC": 0.5}, "ACC")}
    arms["far"] = runner.Arm(lambda seed, size: {"ACC": 0.5}, "ACC", "plain", needs=("nowhere",))
    bench(tmp_path, monkeypatch, **arms)
    monkeypatch.setattr(runner, "names", lambda: ["toy"])
    monkeypatch.setattr("sys.argv", ["methods", "toy", "--seeds", "1"])
    assert command.main() == 1
    told = capsys.readouterr().out
    assert "far: pip install nowhere" in told
    assert "50.0 ± 0.0" in told
    with pytest.raises(ValueError, match="no results of far; run them first"):
        runner.publish("toy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["continual", "--seeds", "0"], "--seeds: expected at least 1, got 0"),
        (["continual", "-k", "nosuch"], "-k: 'nosuch' is in no arm of known: fine-tuning, "),
        (["continual", "--publish", "--quick"], "--publish is of all arms at full size"),
        (["nosuch"], "invalid choice"),
    ],
)
def test_wrong_calls_say_what_is_wrong(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr("sys.argv", ["methods", *arguments])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert message in capsys.readouterr().err


def test_a_picture_is_drawn(tmp_path, monkeypatch):
    toy, _ = bench(tmp_path, monkeypatch, plain=runner.Arm(lambda seed, size: {"ACC": 0.1 * seed}, "ACC"))
    runner.run("toy", 2)
    draw(toy, runner.results("toy"), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    shown = []
    toy.panel = lambda axis, results: shown.append(results)
    draw(toy, runner.results("toy"), tmp_path / "a.png")
    assert shown == [{"plain": [{"ACC": 0.0}, {"ACC": 0.1}]}]


def test_the_panel_of_continual_digits_has_a_line_an_arm(one_thread):
    from matplotlib.figure import Figure

    from bench.methods import continual

    axis = Figure().add_subplot()
    continual.panel(axis, {arm: [quick("continual", arm)] for arm in ("fine-tuning", "replay", "PCR")})
    assert [line.get_label() for line in axis.lines] == ["fine-tuning", "replay"]  # of those that it shows
    assert len(axis.lines[0].get_xdata()) == continual.TASKS * continual.QUICK.steps // continual.QUICK.every


# ---- the page -------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_records():
    text = runner.PAGE.read_text()
    assert runner.page(text) == text
    for name in runner.names():
        begin, end = runner.marks(name)
        assert text.count(begin) == text.count(end) == 1, f"docs/results.md has no part of {name}"
        path = runner.RESULTS / f"{name}.json"
        if path.exists():
            record = json.loads(path.read_text())
            assert [*record["arms"]] == [*runner.load(name).ARMS]
            assert record["cpu"]
            assert not any("dirty" in commit for commit in record["git"])
