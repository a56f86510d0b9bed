"""Environments by name: another try, judged by any reward; those of gymnasium and OpenEnv behind the same protocol."""

import math
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.tiny import EXAMPLES, TOKENIZER, length_reward, llama, log_of, rlvr
from warpup.data import load_examples
from warpup.environments import Retry, Revise, Step, external
from warpup.train import Recipe, TrainError, Turn
from warpup.train.rewards.reward_set import VERIFIER

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_later_right_answer_pays_less():
    game = Retry(reward="warpup.rewards:number", discount=0.5, say="No.")
    assert game.reset({"prompt": "2 + 2", "answer": "4"}) == "2 + 2"
    assert game.step("5") == Turn("No.", 0.0, False, 0.0)
    assert game.step("it is 3") == Turn("No.", 0.0, False, 0.0)
    assert game.step("4") == Turn("No.", 0.25, True, 1.0)


def test_a_reward_without_correct_is_right_from_a_threshold():
    game = Retry(reward=lambda completion, example: len(completion) / 4, right=0.75)
    game.reset({"prompt": ""})
    assert [game.step("ab").done, game.step("abc").done] == [False, True]


def abstains(completion, example):
    return None


def fails(completion, example):
    raise ValueError(completion)


@pytest.mark.parametrize("judge", [abstains, fails])
def test_a_judge_that_cannot_tell_leaves_the_episode_out(judge, tmp_path):
    game = Retry(reward=judge)
    game.reset({"prompt": ""})
    assert math.isnan(game.step("a").reward)

    # Of the first episode it cannot tell, of the others it can: a step is made of these.
    tried = []

    def make():
        tried.append(0)
        return Retry(reward=judge if len(tried) == len(EXAMPLES) + 1 else length_reward, right=0.9)

    Recipe([rlvr(reward=VERIFIER, environment=make, steps=1)]).run(llama(), TOKENIZER, tmp_path)
    errors, step = log_of(tmp_path)
    assert errors["event"] == "reward_errors"
    assert step["tokens"] > 0


def test_a_task_of_reasoning_gym():
    pytest.importorskip("reasoning_gym")
    [example] = load_examples("reasoning-gym:chain_sum:size=1", completion=None)
    game = Retry(reward="warpup.rewards:reasoning_gym")
    game.reset(example)
    assert not game.step("<answer>no number</answer>").done
    assert game.step(f"<answer>{example['answer']}</answer>").reward == 0.5


def test_revise_asks_twice_and_pays_for_the_gain():
    game = Revise(reward="warpup.rewards:number", bonus=10.0, say="Sure?")
    game.reset({"prompt": "2 + 2 =", "answer": "4"})
    assert game.step("4") == Turn("Sure?", 1.0, False, 1.0)  # goes on though it is right
    assert game.step("5") == Turn("", -10.0, True, 0.0)
    game.reset({"prompt": "2 + 2 =", "answer": "4"})  # nothing is left of the one before
    assert game.step("5").reward == 0.0
    assert game.step("4") == Turn("", 11.0, True, 1.0)
    second_alone = Revise(reward="warpup.rewards:number", first=0)
    second_alone.reset({"prompt": "2 + 2 =", "answer": "4"})
    assert second_alone.step("4").reward == 0.0
    assert second_alone.step("5").reward == -1.0  # the gain is over the first answer, paid or not
    unsure = Revise(reward=lambda completion, example: None)
    unsure.reset({"prompt": "?"})
    assert math.isnan(unsure.step("4").reward)


def test_options_that_cannot_be():
    for options, message in (
        ({"discount": 0.0}, "discount must be above 0"),
        ({"discount": "half"}, "discount must be a number, got 'half'"),
        ({"right": None}, "right must be a number, got None"),
        ({"say": 3}, "say must be a text, got 3"),
    ):
        with pytest.raises(TrainError, match=message):
            Retry(**options)
    for options, message in (
        ({"bonus": -1}, "bonus must be a number of at least 0, got -1"),
        ({"bonus": float("inf")}, "bonus must be a number of at least 0, got inf"),
        ({"first": "no"}, "first must be a number of at least 0, got 'no'"),
    ):
        with pytest.raises(TrainError, match=message):
            Revise(**options)
    with pytest.raises(TrainError, match=r"environment.*Retry"):
        rlvr(reward=VERIFIER, environment="warpup.environments:Retry(rewards='x')").check()


def test_it_trains_by_name(tmp_path):
    name = "warpup.environments:Retry(reward='warpup.data:verify', say='wait .')"
    stage = rlvr(reward=VERIFIER, environment=name, turns=2, steps=2, patience=9)
    Recipe([stage]).run(llama(), TOKENIZER, tmp_path)
    assert [line["step"] for line in log_of(tmp_path) if "reward" in line] == [1, 2]


class Guess:
    """A number between 0 and 3, as gymnasium has it."""

    def __init__(self):
        self.closed = False

    def reset(self, *, seed: int):
        self.number = seed % 4
        return "Guess.", {}

    def step(self, action: int):
        done = action == self.number
        return "Yes." if done else "No.", float(done), done, False, {}

    def close(self):
        self.closed = True


@dataclass
class Observation:
    """As OpenEnv's server gives it; its client's results hold one."""

    message: str
    reward: float | None = None
    done: bool = False


@dataclass
class StepResult:
    observation: Any
    reward: float | None = None
    done: bool = False


class OpenGuess(Guess):
    def reset(self, **options):
        return StepResult(Observation(super().reset(**options)[0]))

    def step(self, action):
        message, reward, done, *_ = super().step(action)
        return StepResult(Observation(message), reward, done)


class ServerGuess(OpenGuess):
    def reset(self, **options):
        return super().reset(**options).observation

    def step(self, action):
        result = super().step(action)
        return Observation(result.observation.message, result.reward, result.done)


@pytest.mark.parametrize("make", [Guess, OpenGuess, ServerGuess])
def test_environments_of_others(make):
    game = external(make(), action=int, text=lambda seen: seen if isinstance(seen, str) else seen.message)
    row = {"prompt": "A game.", "reset": {"seed": 6}}
    assert game.reset(row) == "A game.\nGuess."
    assert game.reset({"reset": {"seed": 6}}) == "Guess."
    chat = [{"role": "system", "content": "Play."}, {"role": "user", "content": "A game."}]
    assert game.reset(row | {"prompt": chat})[-1] == {"role": "user", "content": "A game.\nGuess."}
    assert game.reset(row | {"prompt": chat[:1]})[1:] == [{"role": "user", "content": "Guess."}]
    assert game.step("1") == pytest.approx(("No.", 0.0, False, math.nan), nan_ok=True)
    assert game.step("2")[:3] == ("Yes.", 1.0, True)
    game.close()
    assert game.environment.closed


def test_what_is_no_result_is_said():
    with pytest.raises(TrainError, match="expected what gymnasium's reset and step give"):
        Step.of("text")


def test_environments_are_closed(tmp_path):
    made = []

    def make():
        made.append(external(Guess(), action=lambda said: len(said) % 4))
        return made[-1]

    rows = [{"prompt": e["prompt"], "reset": {"seed": n}} for n, e in enumerate(EXAMPLES)]
    stage = rlvr(data=rows, reward=VERIFIER, environment=make, turns=2, steps=1, answer=None, limit=4)
    Recipe([stage]).run(llama(), TOKENIZER, tmp_path)
    assert len(made) > 12
    assert all(game.environment.closed for game in made)


def test_external_names_what_an_environment_lacks():
    with pytest.raises(TrainError, match="external: str has no reset, expected an environment object"):
        external("Wordle")
