"""Decoding: what stands between logits and tokens."""


def row_2():
    """Thyme: Think Beyond Images

    T2: `warpup.ReflectionBatch` with markers of code and a temperature for each phase, and `warpup.sample_step`.
    Tokens in code are certain at temperature 0: `logp_raw` is their log-prob at 1, from which a ratio is made. The
    sandbox of images is the paper's own.
    """
    import torch

    from warpup import ReflectionBatch, ReflectionTokens

    batch = ReflectionBatch(2, tokens=ReflectionTokens((), code_start=(3,), code_end=(2,)))
    batch.begin([0, 1], [[1], [1]])
    batch.set_sampling([0, 1], {"think": 1.0, "answer": 1.0, "code": 0.0})
    batch.update(torch.tensor([3, 1]))  # the first row's next token is code
    step = batch.sample(torch.zeros(2, 4).index_fill(1, torch.tensor([2]), 1.0))
    assert step.temperature.tolist() == [0.0, 1.0]
    assert step.token[0] == 2  # the likeliest
    torch.testing.assert_close(step.logp_raw[0], torch.tensor(1.0) - (torch.tensor(1.0).exp() + 3).log())


def row_14():
    """An Emulator for Fine-Tuning Large Language Models using Small Language Models

    T1: `warpup.reflection.emulated_logprob`; `warpup.sample_step(tuned=..., base=...)` with `beta` fuses it with
    the draw for one trait.
    """
    import torch

    from warpup.reflection import emulated_logprob

    large = torch.tensor([0.5, 0.4, 0.1]).log()
    small = torch.tensor([0.5, 0.25, 0.25]).log()
    tuned = torch.tensor([0.25, 0.5, 0.25]).log()  # half of the first token, twice the second
    found = emulated_logprob(large, small, [tuned]).exp()
    torch.testing.assert_close(found, torch.tensor([0.25, 0.8, 0.1]) / 1.15)
    found = emulated_logprob(large, small, [tuned, small], weights=[0.5, 0.5]).exp()  # half of the way, in logs
    root = 2**0.5
    torch.testing.assert_close(found, torch.tensor([0.25 * root, 0.4 * root, 0.1]) / (0.65 * root + 0.1))
    found = emulated_logprob(large, small, [tuned], top_p=0.8).exp()  # without the third
    torch.testing.assert_close(found, torch.tensor([0.25, 0.8, 0.0]) / 1.05)


def row_37():
    """MEM1: Learning to Synergize Memory and Reasoning for Efficient Long-Horizon Agents

    T2: `warpup.nn.memory_mask` for FlexAttention: each turn sees the question and the last turn's state and
    information. The loss counts thoughts and states, `(kinds == THOUGHT) | (kinds == STATE)`. A task composed of
    several is one question that lists them, with their answers in a row.
    """
    import torch
    from torch.nn.attention.flex_attention import create_mask

    from warpup.nn import INFORMATION, QUESTION, STATE, THOUGHT, memory_mask

    kinds = torch.tensor([[QUESTION, THOUGHT, STATE, INFORMATION, THOUGHT, STATE]])
    turns = torch.tensor([[0, 1, 1, 1, 2, 2]])
    mask = create_mask(memory_mask(kinds, turns), 1, None, 6, 6, device="cpu")[0, 0]
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],  # information sees itself alone
        [1, 0, 1, 1, 1, 0],  # the first thought is forgotten
        [1, 0, 1, 1, 1, 1],
    ]


def row_81():
    """Continuous Chain of Thought Enables Parallel Exploration and Reasoning

    T2: `warpup.data.trace_labels` for `soft_labels` of Warmup; `warpup.continuous_tokens` for sampling, whose
    log-prob in a policy's ratio is the sum of the draws'. Warmup reads the tokens of one trace, where the paper
    reads the mixed embeddings.
    """
    import math

    import torch

    from warpup import ReflectionBatch, continuous_tokens
    from warpup.data import trace_labels

    labels = trace_labels([[5, 7], [5, 8], [5, 7], [5, 9]])
    assert labels["ids"] == [[5], [7, 8, 9]]
    assert labels["logprobs"] == [[0.0], [math.log(0.5), math.log(0.25), math.log(0.25)]]
    batch = ReflectionBatch(1)
    batch.begin([0], [[0]])
    embedding = torch.tensor([[0.0, 0.0], [2.0, 4.0], [6.0, 8.0]])
    mixed, draws = continuous_tokens(torch.zeros(1, 3), batch.tables, torch.tensor([0]), embedding, 4)
    torch.testing.assert_close(mixed[0], embedding[draws.token[0]].mean(0))  # z = (1 / K) sum of e_i
    torch.testing.assert_close(draws.logp.sum(), torch.tensor(4 * math.log(1 / 3)))


def row_88():
    """CyclicReflex: Improving Large Reasoning Models via Cyclical Reflection Token Scheduling

    T1: `warpup.reflection.ReflectionSchedule` and `ReflectionBatch`; `--schedule "cyclic:amplitude=5,period=1200"` of
    `warpup eval` and of RLVR. TIP is `wave="constant"` with the amplitude -3.
    """
    from warpup import ReflectionSchedule

    schedule = ReflectionSchedule("triangle", amplitude=5, period=1200, tokens=[17])
    assert [float(schedule.delta(t)) for t in (0, 150, 300, 600, 900, 1200)] == [0, 2.5, 5, 0, -5, 0]
    assert schedule.replace(shift=0.25).delta(0) == 5
