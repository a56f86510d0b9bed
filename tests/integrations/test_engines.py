"""vLLM's and SGLang's adapters on fakes of the engines' batch protocols: requests that are added, removed, moved,
preempted, and drafts that are rejected. Each row must get what its own request's tokens ask for."""

import random
from types import SimpleNamespace

import pytest
import torch

from warpup.integrations import sglang
from warpup.integrations.vllm import ReflectionV1, ReflectionV2, processor_for
from warpup.reflection import ReflectionBatch, ReflectionSchedule, ReflectionTokens

VOCAB = 9
TOKENS = ReflectionTokens((1, 2), (3,), (4, 5))
SCHEDULES = [
    None,
    ReflectionSchedule("triangle", 5.0, 6, tokens=TOKENS),
    ReflectionSchedule("constant", -3.0, tokens=TOKENS, anchor="reflection", window=(0, 3)),
]


class Request:
    """One request as an engine has it, and what its next row of logits must get."""

    def __init__(self, name, rng):
        self.name, self.schedule = name, rng.choice(SCHEDULES)
        self.prompt, self.output = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 5))], []

    @property
    def params(self):
        return SimpleNamespace(extra_args=self.schedule and {"reflection": self.schedule.to_json()})

    def delta(self, drafts=()):
        if self.schedule is None:
            return 0.0
        batch = ReflectionBatch(1, self.schedule)
        batch.begin([0], [self.prompt], [[*self.output, *drafts]])
        return batch.apply_(torch.zeros(1, VOCAB)).item()


def expect(logits, deltas):
    want = torch.zeros_like(logits)
    want[:, list(TOKENS.ids)] = torch.tensor(deltas).unsqueeze(1)
    assert torch.equal(logits, want)


@pytest.mark.parametrize("seed", range(6))
def test_vllm_v1(seed):
    """A fake of the persistent batch: finished requests leave holes, new ones fill them or are appended, the last rows
    are moved into what is left, two rows may swap; a preempted request is removed and added again."""
    rng = random.Random(seed)
    config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=6))
    processor = ReflectionV1(config, torch.device("cpu"))
    assert not processor.is_argmax_invariant()
    rows: list[Request] = []
    waiting: list[Request] = []
    for step in range(60):
        removed, added, moved = [], [], []
        for i, _ in enumerate(rows):
            if rng.random() < 0.15:
                removed.append(i)
                if rng.random() < 0.5:
                    waiting.append(rows[i])  # preempted
        holes = sorted(removed)
        for _ in range(rng.randrange(3)):
            if len(rows) - len(holes) >= 5:
                break
            request = waiting.pop() if waiting and rng.random() < 0.7 else Request(step, rng)
            index = holes.pop(0) if holes else len(rows)
            rows[index : index + 1] = [request]
            added.append((index, request.params, request.prompt, request.output))
        while holes:  # condense: the last row fills the first hole
            last = len(rows) - 1
            if holes[-1] == last:
                holes.pop()
            else:
                moved.append((last, holes[0], SimpleNamespace(name="UNIDIRECTIONAL")))
                rows[holes.pop(0)] = rows[last]
            rows.pop()
        if len(rows) > 1 and rng.random() < 0.3:
            a, b = rng.sample(range(len(rows)), 2)
            rows[a], rows[b] = rows[b], rows[a]
            moved.append((a, b, SimpleNamespace(name="SWAP")))
        update = SimpleNamespace(removed=removed, added=added, moved=moved)
        processor.update_state(update if removed or added or moved else None)
        expect(processor.apply(torch.zeros(len(rows), VOCAB)), [r.delta() for r in rows])
        for request in rows:
            request.output += [rng.randrange(VOCAB) for _ in range(rng.choice([1, 1, 1, 3]))]


@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("seed", range(4))
def test_vllm_v2(seed, drafts):
    """A fake of model runner V2: fixed slots, tokens on the device, chunked prefill, rows in any order, drafts that are
    accepted in part, slots that are overwritten without notice, preemption."""
    rng = random.Random(seed)
    slots, longest = 4, 400
    states = SimpleNamespace(
        all_token_ids=torch.zeros(slots, longest, dtype=torch.int32),
        prompt_len=torch.zeros(slots, dtype=torch.int32),
        total_len=torch.zeros(slots, dtype=torch.int32),
    )
    config = SimpleNamespace(speculative_config=SimpleNamespace(num_speculative_tokens=drafts) if drafts else None)
    processor = ReflectionV2(config, states)
    running: dict[int, Request] = {}
    computed: dict[int, int] = {}  # tokens whose keys and values are there

    def write(slot):
        request = running[slot]
        tokens = [*request.prompt, *request.output]
        states.all_token_ids[slot, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        states.prompt_len[slot], states.total_len[slot] = len(request.prompt), len(tokens)

    for step in range(50):
        for slot in range(slots):
            if slot in running and rng.random() < 0.1:
                del running[slot]
            if slot not in running and rng.random() < 0.5:
                running[slot], computed[slot] = Request(step, rng), 0
                if rng.random() < 0.3:  # comes back after a preemption
                    running[slot].output = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 9))]
                write(slot)
                active = processor.add_request(slot, running[slot].params)
                assert active == (running[slot].schedule is not None)
        processor.apply_staged_writes()
        rows, wants, guesses = [], [], {}
        for slot, request in running.items():
            total = len(request.prompt) + len(request.output)
            if (
                computed[slot] == 0 and total > 2 and rng.random() < 0.5
            ):  # a chunk of the prefill: its row is thrown away
                computed[slot] = at = rng.randrange(1, total - 1)
                rows.append((slot, int(states.all_token_ids[slot, at - 1]), at - 1))
                wants.append(0.0)
                continue
            guess = [rng.randrange(VOCAB) for _ in range(rng.randrange(drafts + 1))] if request.output else []
            guesses[slot], computed[slot] = guess, total
            for i in range(len(guess) + 1):
                token = guess[i - 1] if i else int(states.all_token_ids[slot, total - 1])
                rows.append((slot, token, total - 1 + i))
                wants.append(request.delta(guess[:i]))
        if not rows:
            continue
        order = list(range(len(rows)))
        rng.shuffle(order)
        columns = torch.tensor([rows[i] for i in order], dtype=torch.int32).T
        ctx = SimpleNamespace(expanded_idx_mapping=columns[0], input_ids=columns[1], pos=columns[2])
        expect(processor.apply(torch.zeros(len(rows), VOCAB), ctx), [wants[i] for i in order])
        for slot, guess in guesses.items():
            accepted = guess[: rng.randrange(len(guess) + 1)]
            running[slot].output += [*accepted, rng.randrange(VOCAB)]
            write(slot)


def test_vllm_wrong_schedule():
    text = SCHEDULES[1].to_json().replace("triangle", "square")
    with pytest.raises(ValueError, match="wave: expected one of"):
        ReflectionV1.validate_params(SimpleNamespace(extra_args={"reflection": text}))
    with pytest.raises(ValueError, match="is its JSON"):
        ReflectionV1.validate_params(SimpleNamespace(extra_args={"reflection": 3}))
    ReflectionV1.validate_params(SimpleNamespace(extra_args=None))


def test_vllm_by_version():
    assert processor_for("0.11.2") is ReflectionV1
    assert processor_for("0.32.0rc1") is ReflectionV2
    assert processor_for("1.0") is ReflectionV2
    from warpup.integrations import vllm

    with pytest.raises(ImportError, match="vLLM is not installed"):
        _ = vllm.Processor


def test_sglang():
    """Rows in any order, requests that come and go, a retracted one with a new output list; the processor is made anew
    at each step."""
    rng = random.Random(0)
    requests = [Request(i, rng) for i in range(8)]
    engine = {
        r.name: SimpleNamespace(rid=f"r{r.name}", origin_input_ids=r.prompt, output_ids=r.output) for r in requests
    }
    for _ in range(40):
        rows = rng.sample(requests, rng.randrange(1, 9))
        for r in rows:
            if rng.random() < 0.1:
                engine[r.name].output_ids = r.output = list(r.output)
        params = [{"reflection": r.schedule.to_json(), "__req__": engine[r.name]} if r.schedule else None for r in rows]
        logits = sglang.ReflectionLogitProcessor()(torch.zeros(len(rows), VOCAB), params)
        expect(logits, [r.delta() for r in rows])
        for r in rows:
            r.output.append(rng.randrange(VOCAB))
    with pytest.raises(ValueError, match="__req__"):
        sglang.ReflectionLogitProcessor()(torch.zeros(1, VOCAB), [{"reflection": SCHEDULES[1].to_json()}])
