"""What the tests of the data share: grammars, and oracles that read the texts and share no code with the package."""

import itertools

from hypothesis import settings
from hypothesis import strategies as st

from warpup.data import (
    knights_and_knaves,
)

few = settings(max_examples=30, deadline=None)

GRAMMARS = [
    dict(people=2),
    dict(people=3),
    dict(people=4, width=3),
    dict(people=2, depth=3),
    dict(people=5, kinds=("or", "iff")),
]

grammars = st.sampled_from(GRAMMARS)

seeds = st.integers(0, 10**6)

ALL_TWO = knights_and_knaves(399)


class Reader:
    """Reads a statement and returns its value under `roles`; with `told`, every value the text gives must be true."""

    def __init__(self, words, roles, told=False):
        self.words, self.roles, self.told, self.at = words, roles, told, 0

    def take(self):
        self.at += 1
        return self.words[self.at - 1]

    def peek(self):
        return self.words[self.at] if self.at < len(self.words) else ""

    def agree(self, value):
        if self.told:
            assert self.take() == ("yes" if value else "no"), self.words
        return value

    def atom(self):
        if self.peek() == "(":
            self.take()
            value = self.expression()
            assert self.take() == ")"
            return value
        name, role = self.take(), self.take()
        return self.agree(self.roles[name] == role)

    def expression(self):
        start, values, operator = self.at, [], None
        if self.peek() == "not":
            operator = self.take()
        values.append(self.atom())
        while operator != "not" and self.peek() in ("and", "or", "implies", "iff"):
            assert operator in (None, self.peek())
            operator = self.take()
            values.append(self.atom())
        rules = {None: all, "and": all, "or": any, "not": lambda v: not v[0], "implies": lambda v: v[0] <= v[1]}
        value = rules[operator](values) if operator != "iff" else values[0] is values[1]
        if self.told and operator:
            assert self.take() == "=", self.words[start:]
            self.agree(value)
        return value

    def read(self):
        value = self.expression()
        assert self.at == len(self.words), self.words
        return value


def lines_of(prompt):
    """name -> words of the statement."""
    assert prompt.endswith(" . ?")
    lines = [line.split() for line in prompt.removesuffix(" . ?").split(" . ")]
    assert all(line[1] == "says" for line in lines)
    return {line[0]: line[2:] for line in lines}


def solve(prompt):
    """All solutions of a prompt as answer strings, by trying every assignment on the text."""
    lines, found = lines_of(prompt), []
    for roles in itertools.product(("knight", "knave"), repeat=len(lines)):
        world = dict(zip(lines, roles, strict=True))
        if all(Reader(words, world).read() == (world[name] == "knight") for name, words in lines.items()):
            found.append(" ".join(f"{name} {role}" for name, role in world.items()))
    return found


def replay(prompt, completion):
    """Follow a long trace step by step, check each line, and return its answer."""
    lines, stack, sound, last = lines_of(prompt), {}, set(), ""
    thought, answer = completion.removeprefix("<think> ").split(" . </think> <answer> ")
    for step in thought.split(" . "):
        words = step.split()
        if words[0] == "try":
            assert last in ("", "ok", "try", "wait")
            assert words[1] not in stack
            assert words[2] == "knight"
            stack[words[1]] = "knight"
        elif words[0] == "wait":
            assert last in ("bad", "back")
            assert words[2] == "knave"
            assert list(stack)[-1] == words[1]
            assert stack[words[1]] == "knight"
            stack[words[1]] = "knave"
        elif words[0] == "back":
            assert last in ("bad", "back")
            assert stack.popitem()[1] == "knave"
        else:
            name, told, verdict = words[0], words[2:-1], words[-1]
            value = Reader(told, stack, told=True).read()
            assert [w for w in told if w not in ("yes", "no", "=")] == lines[name]
            assert words[1] == "says"
            assert verdict == ("ok" if value == (stack[name] == "knight") else "bad")
            sound.add((name, tuple(stack.items()))) if verdict == "ok" else None
        last = words[0] if words[0] in ("try", "wait", "back") else words[-1]
    assert stack.keys() == lines.keys()
    assert last != "bad"
    for name in lines:  # each statement was found good under the final roles of those assigned at the time
        assert any(n == name and dict(at).items() <= stack.items() for n, at in sound)
    world = {name: stack[name] for name in lines}
    assert answer == " ".join(f"{n} {r}" for n, r in world.items()) + " </answer>"
    return answer.removesuffix(" </answer>")
