"""Tasks of reasoning-gym: the split, and the wrong answers that its own scorers pay."""

import sys

import pytest

from warpup.data import load_examples
from warpup.rewards import reasoning_gym


def task(name, **options):
    text = ",".join(f"{key}={value!r}" for key, value in options.items())
    return load_examples(f"reasoning-gym:{name}:{text}", completion=None)


@pytest.fixture(autouse=True)
def gym():
    return pytest.importorskip("reasoning_gym")


def test_train_and_test_share_no_question(gym):
    train, test = task("coin_flip", size=150), task("coin_flip", start=150, size=150)
    assert task("coin_flip", size=150) == train
    questions = [row["prompt"] for row in train + test]
    whole = gym.create_dataset("coin_flip", size=300, seed=0)
    assert len(set(questions)) == len(questions) < 300  # it repeats itself, here nothing does
    assert set(questions) == {whole[i]["question"] for i in range(300)}
    assert train[0] | {"entry": None} == {
        "prompt": whole[0]["question"], "answer": whole[0]["answer"], "category": "coin_flip", "entry": None
    }  # fmt: skip


def test_options_and_mistakes(monkeypatch):
    rows = task("chain_sum", size=3, min_terms=2, max_terms=2, seed=7)
    assert all(row["entry"]["metadata"]["num_terms"] == 2 for row in rows)
    for source, message in [
        ("countdwn", "'countdwn' not registered"),
        ("countdown:sizes=3", "unexpected keyword argument 'sizes'"),
        ("countdown:min_numbers=30", "max_numbers must be >= min_numbers"),
        ("countdown:size=0", "size: expected a whole number of at least 1, got 0"),
        ("countdown:start=-1", "start: expected a whole number of at least 0"),
        ("countdown:3", r"expected reasoning-gym:name\[:key=value,...\]"),
        ("", r"expected reasoning-gym:name"),
        ("list_functions:size=60", "gives another question each time it is read"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_examples(f"reasoning-gym:{source}")
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match="pip install reasoning-gym"):
        load_examples("reasoning-gym:countdown")


CASES = [
    ("gsm_symbolic", "{answer}", True),
    ("gsm_symbolic", "so #### {answer}.", True),
    ("gsm_symbolic", "-{answer}", False),
    ("gsm_symbolic", "{answer}, no: 0", False),
    ("gsm_symbolic", "{answer}5", False),
    ("game_of_life_halting", "{answer}", True),
    ("game_of_life_halting", "perhaps", False),
    ("game_of_life_halting", "True or False", False),
    ("countdown", "<answer>{answer}</answer>\n", True),
    ("countdown", "{answer} + 0", False),
    ("countdown", "", False),
    ("countdown", "__import__('os').abort()", False),
    ("puzzle24", "{answer}", True),
    ("puzzle24", "24", False),
    ("puzzle24", "1*2*3*4", False),
    ("chain_sum", "{answer}\n", True),
    ("chain_sum", "1{answer}", False),
    ("knights_knaves", "{answer}", True),
    ("power_function", "{answer}", True),
    ("power_function", "-{answer}", False),
    ("prime_factorization", "two", False),  # its scorer raises
    ("word_sorting", "{answer}\n", True),
    ("word_sorting", "{answer}, more", False),
    ("letter_jumble", "{answer}", True),
    ("letter_jumble", "{answer} {answer}", False),
]


@pytest.mark.parametrize(("name", "completion", "right"), CASES)
def test_only_right_answers_are_paid(name, completion, right):
    [row] = task(name, size=1, seed=2)
    grade = reasoning_gym(completion.replace("{answer}", str(row["answer"])), row, timeout=60)
    assert grade == (float(right), right)


def test_an_example_of_no_task_is_named():
    with pytest.raises(ValueError, match="entry: expected an example of load_examples"):
        reasoning_gym("1", {"answer": "1"})
