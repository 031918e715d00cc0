"""What several test files share: a home folder of their own, and a network test that says why it is skipped."""

import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "network: needs the package index; skipped, with the reason, where it is out of reach")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty TUNER_HOME; children that a test starts do not ask the Hub."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("TUNER_HOME", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder with a random base model of two layers; to be read only."""
    from tests.small import small_base

    return small_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def quick(monkeypatch):
    """Runs without long answers, at a given precision, with all evaluations wanted; the monkeypatch itself, for more."""
    from tuner import models, report, train

    monkeypatch.setattr(models, "choose_precision", lambda device: "bfloat16")
    monkeypatch.setattr(train, "SAMPLE_TOKENS", 4)
    monkeypatch.setattr(train, "EVALUATION_SHARE", 10)
    monkeypatch.setattr(report, "ANSWER_TOKENS", 4)
    return monkeypatch
