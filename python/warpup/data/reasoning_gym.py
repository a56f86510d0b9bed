"""Tasks of the package reasoning-gym as data and reward, split and scored so that neither tells more than it should.

    train = load_examples("reasoning-gym:countdown:size=2000")
    test = load_examples("reasoning-gym:countdown:start=2000,size=200")

In a config `data = "reasoning-gym:countdown:size=2000"` with `reward = "warpup.rewards:reasoning_gym"`.

Item i + 1 of seed s is item i of seed s + 1 in most of its tasks, so two seeds are no split: 158 of 200 puzzles of
seeds 1 and 43 are the same. Here train and test are stretches of one seed, and a question that came before is left out.
"""

from collections.abc import Iterator
from typing import Any

from warpup._options import read_options

OPTIONS = {"size": 500, "start": 0, "seed": 0}


def read_task(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place for messages, row) of `reasoning-gym:name[:key=value,...]`.

    size: items of the stretch, before repetitions are left out (500). start: where it begins (0). seed: 0. All other
    options are the task's own, such as `min_numbers=3`. A row has "prompt", "answer", "category" (the task's name) and
    "entry", which the reward reads.
    Raises ImportError naming the installation; ValueError on an unknown task or option.
    """
    name, options = _parse(source)
    size, start, seed = (options.pop(key, default) for key, default in OPTIONS.items())
    for key, value, least in (("size", size, 1), ("start", start, 0), ("seed", seed, 0)):
        if type(value) is not int or value < least:
            raise ValueError(f"source: {source}: {key}: expected a whole number of at least {least}, got {value!r}")
    gym = package()
    try:
        task = gym.create_dataset(name, size=start + size, seed=seed, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"source: {source}: {error or type(error).__name__}") from error
    seen = set()
    for index in range(start + size):
        entry = task[index]
        question = entry["question"]
        if task[index]["question"] != question:
            raise ValueError(
                f"source: {source}: the task gives another question each time it is read: save it as JSONL"
            )
        if question not in seen and index >= start:
            row = {"prompt": question, "answer": entry["answer"], "category": name}
            yield f"{source}, item {index}", row | {"entry": {"task": name, **entry}}
        seen.add(question)


def _parse(source: str) -> tuple[str, dict[str, Any]]:
    name, _, text = source.removeprefix("reasoning-gym:").partition(":")
    try:
        options = read_options(text)
        if not name:
            raise ValueError(name)
    except ValueError as error:
        raise ValueError(f"source: expected reasoning-gym:name[:key=value,...], got {source!r}") from error
    return name, options


def package():
    """The package, or ImportError naming the installation."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise ImportError("this source needs the package reasoning-gym: pip install reasoning-gym") from error
    return reasoning_gym
