"""Decoding: what stands between logits and tokens."""


def row_2():
    """Thyme: Think Beyond Images

    T2: not yet.
    """


def row_14():
    """An Emulator for Fine-Tuning Large Language Models using Small Language Models

    T1: not yet.
    """


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

    T2: not yet.
    """


def row_88():
    """CyclicReflex: Improving Large Reasoning Models via Cyclical Reflection Token Scheduling

    T1: `warpup.reflection.ReflectionSchedule` and `ReflectionBatch`; `--schedule "cyclic:amplitude=5,period=1200"` of
    `warpup eval` and of RLVR. TIP is `wave="constant"` with the amplitude -3.
    """
    from warpup import ReflectionSchedule

    schedule = ReflectionSchedule("triangle", amplitude=5, period=1200, tokens=[17])
    assert [float(schedule.delta(t)) for t in (0, 150, 300, 600, 900, 1200)] == [0, 2.5, 5, 0, -5, 0]
    assert schedule.replace(shift=0.25).delta(0) == 5
