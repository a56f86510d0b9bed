"""A request as an engine has it, and what its rows of logits must get."""

from types import SimpleNamespace

import torch

from warpup.reflection import ReflectionBatch, ReflectionSchedule, ReflectionTokens, ThinkingBudget
from warpup.reflection.budget_state import FORCED

VOCAB = 9
TOKENS = ReflectionTokens((1, 2), (3,), (4, 5))
SCHEDULES = [
    None,
    ReflectionSchedule("triangle", 5.0, 6, tokens=TOKENS),
    ReflectionSchedule("constant", -3.0, tokens=TOKENS, anchor="reflection", window=(0, 3)),
]
BUDGETS = [
    None,
    ThinkingBudget(4, think_start=(3,), think_end=(4, 5), message=(7,)),
    ThinkingBudget(6, think_start=(3,), think_end=(4, 5), warn_at=2, warning=(8, 6)),
]
UNTOUCHED = torch.zeros(VOCAB)


class Request:
    def __init__(self, name, rng):
        self.name, self.schedule, self.budget = name, rng.choice(SCHEDULES), rng.choice(BUDGETS)
        self.prompt, self.output = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 5))], []

    @property
    def asked(self):
        """What its parameters say, for the engines' adapters."""
        given = {"reflection": self.schedule, "thinking_budget": self.budget}
        return {name: value.to_json() for name, value in given.items() if value}

    @property
    def params(self):
        return SimpleNamespace(extra_args=self.asked or None)

    def row(self, drafts=()):
        """The logits, 0 before, where the model has read the output and these drafts."""
        logits, said = torch.zeros(1, VOCAB), [*self.output, *drafts]
        if self.schedule:
            batch = ReflectionBatch(1, self.schedule)
            batch.begin([0], [self.prompt], [said])
            batch.apply_(logits)
        if (token := self.forced(said)) is not None:
            logits[0, token] = FORCED
        return logits[0]

    def forced(self, said):
        """What the budget asks for behind these tokens, read off the text; it begins to think once at most."""
        if self.budget is None:
            return None
        text, began = [*self.prompt, *said], None
        for n in range(1, len(text) + 1):
            if text[n - 1] == 3:
                began = max(n - len(self.prompt), 0)
            elif text[n - 2 : n] == [4, 5]:
                began = None
        if began is None:
            return None
        thought, budget = len(said) - began, self.budget
        if thought >= budget.tokens:
            return budget.closing[thought - budget.tokens]
        warned = thought - (budget.tokens if budget.warn_at is None else budget.warn_at)
        return budget.warning[warned] if 0 <= warned < len(budget.warning) else None

    def draw(self, rng, count=1):
        """Tokens behind the output, as its own rows ask for them."""
        said = list(self.output)
        for _ in range(count):
            begun = self.budget and 3 in (*self.prompt, *said)
            free = rng.choice([token for token in range(VOCAB) if not (begun and token == 3)])
            token = self.forced(said)
            said.append(free if token is None else token)
        return said[len(self.output) :]


def expect(logits, rows):
    assert torch.equal(logits, torch.stack(rows))
