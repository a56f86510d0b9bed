"""Old tasks keep what was certified, a broken certificate is found, a killed run goes on bit for bit."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from tests.support.continual import SHORT
from warpup.apps.continual import learners
from warpup.apps.continual.run import broken, run_method
from warpup.apps.continual.settings import METHODS
from warpup.interval.weights.interval_weights import certified
from warpup.train.log import quiet

pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("one_thread")


class Killed(BaseException):
    """A kill: nothing catches it."""


def killer(tasks):
    """A report that ends the process, so to say, once so many tasks are done."""

    def report(stage, step, steps, numbers):
        if "accuracy" in numbers and step * learners.PAIRS // steps == tasks:
            raise Killed

    return report


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
