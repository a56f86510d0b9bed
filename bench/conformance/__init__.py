"""Whose policy loss, divergence or estimator is whose: the released code of TRL, verl, Liger and OpenRLHF beside ours,
on the same inputs, in float64. `python -m bench.conformance` writes docs/conformance.md.

A row calls a peer by the name that it has there, with its defaults, and our function of that name with ours. Where the
two differ, the row says by which convention, and calls ours again with that convention given: the last column says
what then is left. The peers are called as their own tests would: tests/policy/test_peers.py, test_verl.py,
test_openrlhf.py.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from bench.conformance.distillation import distillation_rows
from bench.conformance.estimators import estimator_rows
from bench.conformance.losses import kl_rows, liger_rows, openrlhf_rows, trl_rows, verl_rows
from bench.conformance.row import Row, difference, inputs
from tests.divergence.test_topk_divergence import verl_imported
from tests.policy import test_openrlhf, test_verl
from tests.support.released import imported, released

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"


def told(value: float) -> str:
    """In words that do not depend on the last digit."""
    return "equal" if value < 1e-6 else f"{100 * value:.0f} %" if value >= 0.01 else f"{value:.0e}"


def line(row: Row) -> str:
    want = row.theirs()
    plain = told(difference(row.plain(), want))
    given = "" if row.given is None else told(difference(row.given(), want))
    return f"| `{row.ours}` | {row.peer} | {row.name} | {plain} | {row.convention} | {given} |"


HEAD = """# Conformance: who means what by a name

Written by `python -m bench.conformance`, and held by `tests/test_conformance.py`: the released code of each peer and
our function of that name, on the same float64 inputs. "As it comes" is the difference of loss, gradient or advantages,
each relative to the peer's largest, with the defaults of both. Where it is not "equal" (below 1e-6), the convention
says what the peer does, and the last column is the difference once ours is told to do so.

Peers: {versions}.
NeMo-RL and prime-rl are not in the package index (`nemo-rl` 0.0.0 there is an empty name), so no row calls them; what
is known of them from reading is in [policy](policy.md) and in the functions' docstrings.

| ours | peer | its name | as it comes | the peer's convention | then |
|---|---|---|---|---|---|
"""


def page() -> str:
    versions = f"TRL {version('trl')}, Liger-Kernel {version('liger_kernel')}, verl 0.9.1, OpenRLHF 0.11.2"
    x = inputs()
    rows = [*trl_rows(x), *liger_rows(x)]
    lines = [line(row) for row in rows]
    with imported(released("verl", "0.9.1"), test_verl.REAL, test_verl.STUBS) as verl:
        core = verl[test_verl.CORE]
        rows = [*verl_rows(x, core), *kl_rows(x, core), *estimator_rows(x, core)]
        lines += [line(row) for row in rows]
    with verl_imported() as verl:
        lines += [line(row) for row in distillation_rows(verl)]
    with imported(released("openrlhf", "0.11.2"), test_openrlhf.REAL, test_openrlhf.STUBS) as openrlhf:
        lines += [line(row) for row in openrlhf_rows(x, openrlhf[test_openrlhf.LOSS])]
    order = sorted(range(len(lines)), key=lambda i: (lines[i].startswith("| `advantage"), lines[i].split(" | ")[0]))
    return HEAD.format(versions=versions) + "\n".join(lines[i] for i in order) + "\n"
