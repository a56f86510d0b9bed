"""docs/conformance.md is what its command writes, with these versions of the peers."""

from importlib.metadata import version

import pytest

TRL, LIGER = pytest.importorskip("trl"), pytest.importorskip("liger_kernel")

from bench import conformance  # noqa: E402


def test_page_is_up_to_date(one_thread):
    committed = conformance.PAGE.read_text()
    for peer, package in (("TRL", "trl"), ("Liger-Kernel", "liger_kernel")):
        if f"{peer} {version(package)}," not in committed:
            pytest.skip(f"the page is of another version of {peer}")
    assert conformance.page() == committed, "run `python -m bench.conformance`"


def test_nothing_unexplained():
    """A row that differs says why, and is equal once ours is told to do the same; the other way round is no surprise
    either."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in conformance.PAGE.read_text().splitlines()]
    rows = [row for row in rows if len(row) == 6 and row[0].startswith("`")]
    assert len(rows) > 40
    for ours, peer, name, plain, convention, then in rows:
        assert (plain == "equal") == (convention == ""), (ours, peer, name)
        assert then == ("" if plain == "equal" else "equal"), (ours, peer, name)
