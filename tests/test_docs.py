"""The documentation is true: its Python runs as it stands, its links lead somewhere, the files it names exist."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from warpup.info import expand

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
OWN = ("methods.md",)  # whose snippets have a test of their own
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
# A page may say that a name is the reader's own: then it stands for a tiny one.
GIVEN = ("tokenizer", "model", "path", "inputs")
NAME = "{0.parent.name}/{0.name}".format


def given(names: list[str], folder: Path) -> dict:
    """What a block may name without making it."""
    if not names:
        return {}
    import torch

    from tests.support.tiny import llama, mixture
    from warpup.data import word_tokenizer

    tokenizer = word_tokenizer(extra=("but", "alternatively", "however", "hmm"))  # the default words of a schedule
    mixture().save_pretrained(folder)
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    model = llama(vocab_size=len(tokenizer)).eval()
    own = {"tokenizer": tokenizer, "model": model, "path": folder, "inputs": inputs | {"max_new_tokens": 5}}
    return {name: own[name] for name in names}


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text() and p.name not in OWN], ids=NAME)
def test_python_runs(page, tmp_path, monkeypatch):
    """The blocks of a page, one after the other: a later one may go on with what an earlier one made."""
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for kind, code in BLOCK.findall(page.read_text()):
        if kind != "python":
            continue
        if re.search(r"\btrl\b", code):
            pytest.importorskip("trl")
        made = re.findall(r"^(?:\w+, )*(\w+)(?:, \w+)* =", code, re.MULTILINE)
        wanted = [n for n in GIVEN if re.search(rf"(?<![\w.=]){n}\b(?!=)", code) and n not in made and n not in names]
        names |= given(wanted, tmp_path)
        exec(compile(code, f"{page.name}: {code.splitlines()[0]}", "exec"), names)


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=NAME)
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link and link[0] != "#"]
    missing = [link for link in links if not (page.parent / link.partition("#")[0]).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=NAME)
def test_named_files_exist(page):
    if page.name == "CHANGELOG.md":
        pytest.skip("names what is gone as well")
    rooms = r"`((?:csrc|python|tests|bench|docs|examples|tools|cmake|\.ci)/[^`\s<>*]*)`"
    named = [path for text in re.findall(rooms, prose(page)) for path in expand(text)]
    missing = [path for path in named if not (ROOT / path.partition("::")[0]).exists()]
    assert not missing


def test_the_ci_script_finds_the_readmes_test_command():
    after = (ROOT / "README.md").read_text().split("<!-- test -->\n")[1]
    assert re.match(r"```sh\npip install .* && pytest .*\n```", after)


def test_the_readme_is_short():
    assert (ROOT / "README.md").read_text().count("\n") <= 170
