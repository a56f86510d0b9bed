"""Schedules for the tests of this family: one of each wave, and hypothesis's choice of any."""

from hypothesis import strategies as st

from warpup.reflection import ReflectionSchedule, ReflectionTokens

OPEN, CLOSE, CODE, END = (3,), (4, 3, 4), (5, 5, 7), (6,)  # markers, two of them overlap themselves
TOKENS = ReflectionTokens((1, 2), OPEN, CLOSE, CODE, END)
SIMPLE = ReflectionTokens((1,), (3,), (4,))
VOCAB = 9
WAVES = [("triangle", {}), ("cosine", {}), ("constant", {}), ("table", {"table": [(0, 1.0), (5, -2.0), (30, 0.5)]})]


def wave_of(wave, **options):
    """A schedule of this wave, with those of the options that have an effect on it."""
    options = {"amplitude": 3.0, "period": 12, "tokens": TOKENS, **dict(WAVES).get(wave, {}), **options}
    idle = {"period", "shift"} if wave == "constant" else {"amplitude"} if wave == "table" else set()
    idle |= {"period"} if wave == "table" and not options.get("shift") else set()
    return ReflectionSchedule(wave, **{name: value for name, value in options.items() if name not in idle})


token_lists = st.lists(st.integers(0, VOCAB - 1), max_size=30)
schedules = st.builds(
    lambda wave, **options: wave_of(wave, **options),
    st.sampled_from([name for name, _ in WAVES]),
    amplitude=st.floats(-9, 9),
    period=st.sampled_from([3, 7.5, 40]),
    anchor=st.sampled_from(["generation", "think", "reflection"]),
    phase=st.sampled_from(["think", "any", ("answer", "code")]),
    window=st.sampled_from([None, (2, 9), (3, None)]),
    shift=st.floats(-1, 1),
    start_offset=st.integers(0, 20),
)
