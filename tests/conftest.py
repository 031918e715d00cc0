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
def one_thread():
    """Nothing in these tests is large enough for two threads; on a busy machine they mostly wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base(tmp_path_factory, one_thread):
    """A folder with a random base model of two layers; to be read only."""
    import gc

    from tests.small import small_base
    from tuner import train  # noqa: F401

    folder = small_base(tmp_path_factory.mktemp("base"))
    gc.collect()
    gc.freeze()  # each Trainer collects garbage; going through all of transformers for it takes longer than its run
    return folder


@pytest.fixture(scope="session")
def trained(base, tmp_path_factory):
    """A TUNER_HOME in which the owner "local" has a finished run; to be read only, or copied."""
    from tests.small_run import small_run
    from tuner import run, train

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(folder))
        make_quick(patch)
        going = small_run(base, epochs=6.0, learning_rate=1e-2)
        run.claim(going)
        assert train.main(going) == 0
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Runs without long answers and with a short probe, at a given precision, with all evaluations wanted; the monkeypatch itself, for more."""
    make_quick(monkeypatch)
    return monkeypatch


def make_quick(monkeypatch) -> None:
    from tuner import models, plan, probe

    few = [*probe.items()[:4], *probe.items()[-2:]]
    monkeypatch.setattr(models, "choose_precision", lambda device: "bfloat16")
    monkeypatch.setattr(plan, "SAMPLE_TOKENS", 4)
    monkeypatch.setattr(plan, "EVALUATION_SHARE", 10)
    monkeypatch.setattr(plan, "MOST_ANSWER_TOKENS", 4)
    monkeypatch.setattr(probe, "items", lambda: few)


@pytest.fixture(scope="module")
def server():
    """A stand-in Hub for the tests of a file."""
    from tests.stand_in_hub import StandInHub

    with StandInHub() as hub:
        yield hub
