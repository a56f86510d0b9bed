"""What every adapter follows requests by: lists of tokens that grow, shrink and are not known yet."""

import random

import pytest
import torch

from tests.integrations.requests import SCHEDULES, VOCAB, Request, expect
from warpup.integrations._requests import Requests, schedule_from


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
