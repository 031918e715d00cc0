"""Twenty visitors on the three tabs while a run trains: nobody meets an error or another's things, and nothing grows."""

import time

from tests import load
from tests.served import Served
from tests.stand_in_hub import StandInHub


def test_twenty_visitors_meet_no_error_and_nobody_else_s_things_and_nothing_grows(base, tmp_path, capsys):
    """Three batches of the same clicks, about ten seconds each; each is a new visit, and no more visits are held than may be."""
    with StandInHub() as hub:
        hub.add_repo("test/small", files={path.name: path.read_bytes() for path in base.iterdir()})
        with Served(tmp_path, shared=True, sessions=30, waits_s=None, HF_ENDPOINT=hub.url) as app:
            began = time.monotonic()
            found = load.go(app, visitors=20, batches=3, rounds=1, base="test/small", think_s=0.6)
            took_s = time.monotonic() - began
    with capsys.disabled():
        print(f"\n20 visitors, {took_s:.0f} s beside a training\n{found.table()}")
    assert not found.wrong, found.wrong[:5]
    assert found.trained
    assert not found.grown(), found.grown()
    assert found.held[-1]["threads"] <= found.held[-2]["threads"] + 2 and found.held[-1]["files"] <= found.held[-2]["files"] + 2
    assert "Traceback" not in app.log.read_text(), app.log.read_text()[-3000:]
