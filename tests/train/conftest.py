import pytest

from tests.support.command import make_project


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a model, data, a reward function and a config; the working folder is there."""
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
