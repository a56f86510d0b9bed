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

    T2: not yet.
    """


def row_81():
    """Continuous Chain of Thought Enables Parallel Exploration and Reasoning

    T2: not yet.
    """


def row_88():
    """CyclicReflex: Improving Large Reasoning Models via Cyclical Reflection Token Scheduling

    T1: `warpup.reflection.ReflectionSchedule` and `ReflectionBatch`; `--schedule "cyclic:amplitude=5,period=1200"`
    of `warpup eval` and of RLVR. TIP is `wave="constant"` with the amplitude -3.
    """
    from warpup import ReflectionSchedule

    schedule = ReflectionSchedule("triangle", amplitude=5, period=1200, tokens=[17])
    assert [float(schedule.delta(t)) for t in (0, 150, 300, 600, 900, 1200)] == [0, 2.5, 5, 0, -5, 0]
    assert schedule.replace(shift=0.25).delta(0) == 5
