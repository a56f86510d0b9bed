"""What every adapter follows requests by: lists of tokens that grow, shrink and are not known yet."""

import random

import pytest
import torch

from tests.integrations.requests import BUDGETS, SCHEDULES, VOCAB, Request, expect
from warpup.integrations._requests import Requests, asked_by, budget_from, schedule_from


@pytest.mark.parametrize("seed", range(4))
def test_lists_that_grow_and_shrink(seed):
    rng = random.Random(seed)
    requests, here = Requests(5), {}
    for step in range(60):
        for key in range(5):
            if rng.random() < 0.1:
                requests.stop(key)
                here.pop(key, None)
            if key not in here and rng.random() < 0.5:
                here[key] = Request(step, rng)
                here[key].output += here[key].draw(rng, rng.choice([0, 0, 30]))
                requests.start(key, here[key].prompt, here[key].output, here[key].schedule, here[key].budget)
        if here and rng.random() < 0.2:
            source, target, swap = rng.choice(list(here)), rng.randrange(5), rng.random() < 0.5
            if source != target:
                requests.move(source, target, swap=swap)
                mine, other = here.pop(source), here.pop(target, None)
                here |= {target: mine} | ({source: other} if swap and other else {})
        requests.catch_up()
        keys = list(here)
        logits = torch.zeros(len(keys), VOCAB)
        requests.apply_(logits, keys)
        expect(logits, [here[key].row() for key in keys])
        for request in here.values():  # drafts that are rejected, then what came instead
            del request.output[len(request.output) - min(len(request.output), rng.choice([0, 0, 0, 1, 2, 25])) :]
        requests.catch_up()
        for request in here.values():
            request.output += request.draw(rng, rng.choice([1, 1, 3]))


def test_a_placeholder_is_no_token():
    """It is read when it is caught up with, and never passed over."""
    requests = Requests(2, SCHEDULES[1], remedy="wait for it")
    output = [-1]
    requests.start("a", [1], output)
    with pytest.raises(ValueError, match=r"request a: the engine has a placeholder .*: wait for it"):
        requests.catch_up()
    output[0] = 7
    requests.catch_up()
    output.append(-1)
    with pytest.raises(ValueError, match="placeholder"):
        requests.catch_up()
    output[1] = 7
    requests.catch_up()
    logits = torch.zeros(1, VOCAB)
    requests.apply_(logits, ["a"])
    assert logits.max() == pytest.approx(SCHEDULES[1].delta(2))


def test_no_slot_is_left():
    requests = Requests(1, SCHEDULES[1])
    requests.start("a", [1], [])
    with pytest.raises(RuntimeError, match="more than 1 requests at once"):
        requests.start("b", [1], [])


def test_a_requests_schedule():
    assert schedule_from(SCHEDULES[1].to_json()) == SCHEDULES[1]
    assert schedule_from(None) is None
    with pytest.raises(ValueError, match="wave: expected one of"):
        schedule_from(SCHEDULES[1].to_json().replace("triangle", "square"))
    with pytest.raises(ValueError, match="is its JSON"):
        schedule_from(3)


def test_the_place_of_what_is_wrong_is_named():
    both = {"reflection": SCHEDULES[1].to_json(), "thinking_budget": BUDGETS[1].to_json()}
    assert asked_by(both, "extra_args") == (SCHEDULES[1], BUDGETS[1])
    assert asked_by({}, "extra_args") == (None, None)
    for key, wrong, told in (
        ("reflection", "{}", "not the JSON of a Ref"),
        ("thinking_budget", 512, "a request's thin"),
    ):
        with pytest.raises(ValueError, match=rf"extra_args\['{key}'\]: {told}"):
            asked_by(both | {key: wrong}, "extra_args")


def test_budgets_as_requests_bring_them():
    """As JSON or, in the process of the engine, as they are: what no logits processor can do is refused of both."""
    budget = BUDGETS[1]
    assert budget_from(budget) == budget_from(budget.to_json()) == budget
    probed = budget.replace(tokens=60, probe_every=2, probe_below=0.1)
    for given in (probed, probed.to_json()):
        with pytest.raises(ValueError, match="probe_every: a probe is a forward pass of its own"):
            budget_from(given)
    for given in (budget.replace(message=[7] * 200), budget.replace(message=[7] * 200).to_json()):
        with pytest.raises(ValueError, match="have at most 128 tokens here, got 202"):
            budget_from(given)
    with pytest.raises(ValueError, match=r"thinking budget is its JSON .*, got int"):
        budget_from(512)
