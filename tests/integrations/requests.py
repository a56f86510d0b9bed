"""A request as an engine has it, and what its rows of logits must get."""

from types import SimpleNamespace

import torch

from warpup.reflection import ReflectionBatch, ReflectionSchedule, ReflectionTokens

VOCAB = 9
TOKENS = ReflectionTokens((1, 2), (3,), (4, 5))
SCHEDULES = [
    None,
    ReflectionSchedule("triangle", 5.0, 6, tokens=TOKENS),
    ReflectionSchedule("constant", -3.0, tokens=TOKENS, anchor="reflection", window=(0, 3)),
]


class Request:
    def __init__(self, name, rng):
        self.name, self.schedule = name, rng.choice(SCHEDULES)
        self.prompt, self.output = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 5))], []

    @property
    def params(self):
        return SimpleNamespace(extra_args=self.schedule and {"reflection": self.schedule.to_json()})

    def delta(self, drafts=()):
        """What is added where the model has read the output and these drafts."""
        if self.schedule is None:
            return 0.0
        batch = ReflectionBatch(1, self.schedule)
        batch.begin([0], [self.prompt], [[*self.output, *drafts]])
        return batch.apply_(torch.zeros(1, VOCAB)).item()


def expect(logits, deltas):
    want = torch.zeros_like(logits)
    want[:, list(TOKENS.ids)] = torch.tensor(deltas).unsqueeze(1)
    assert torch.equal(logits, want)
