"""Twenty visitors on the three tabs while a run trains: nobody meets an error or another's things, and nothing grows."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests import load
from tests.served import Served
from tests.stand_in_hub import StandInHub
from tuner import hub
from tuner.home import read_json, write_json
from tuner.ui import app as page


def test_twenty_visitors_meet_no_error_and_nobody_else_s_things_and_nothing_grows(base, tmp_path, capsys):
    """Three batches of the same clicks, about ten seconds each; each is a new visit, and no more visits are held than may be."""
    with StandInHub() as server:
        server.add_repo("test/small", files={path.name: path.read_bytes() for path in base.iterdir()})
        with Served(tmp_path, shared=True, sessions=30, waits_s=None, HF_ENDPOINT=server.url) as app:
            began = time.monotonic()
            found = load.go(app, visitors=20, batches=3, rounds=1, base="test/small", think_s=0.5)
            took_s = time.monotonic() - began
    with capsys.disabled():
        print(f"\n20 visitors, {took_s:.0f} s beside a training\n{found.table()}")
    assert not found.wrong, found.wrong[:5]
    assert found.trained
    assert not found.grown(), found.grown()
    assert found.held[-1]["thread AnyIO worker thread"] <= load.MOST_WORKERS and found.held[-1]["files"] <= found.held[-2]["files"] + 2
    assert "Traceback" not in app.log.read_text(), app.log.read_text()[-3000:]


def test_two_threads_that_write_one_file_do_not_take_it_from_each_other(tmp_path):
    """Twenty visitors who brought the same base at once met an error, since the process had one temporary name for all."""
    with ThreadPoolExecutor(8) as pool:
        for _ in range(30):
            list(pool.map(lambda number: write_json(tmp_path / "fetched.json", {"number": number}), range(8)))
            assert read_json(tmp_path / "fetched.json")["number"] in range(8)
    assert [path.name for path in tmp_path.iterdir()] == ["fetched.json"]


def test_a_visit_that_is_over_is_forgotten_and_one_with_a_click_that_waits_is_not(monkeypatch):
    """Gradio itself keeps an entry for each visit there ever was."""
    monkeypatch.setattr(page, "MOST_SESSIONS", 3)
    visits = page._Visits()
    visits["waits"] = {"a click"}
    for number in range(20):
        visits[f"visit {number}"] = set()
    assert "waits" in visits and "visit 19" in visits and len(visits) <= 4


def test_a_page_that_is_being_answered_is_not_pushed_out_by_newer_visits():
    """In order of their coming, somebody whose run had trained for long lost an answer whenever enough others came."""
    streams = page._Streams(3)
    for visit in "abc":
        streams[visit] = []
    streams["a"].append("an answer")
    streams["d"] = []
    assert list(streams) == ["c", "a", "d"] and streams["a"] == ["an answer"]


def test_a_page_that_is_open_for_long_holds_no_more_than_at_first(home):
    """Gradio itself keeps each component that an update made anew under a number of its own, once a click reads it."""
    import asyncio

    import gradio as gr

    with gr.Blocks() as demo:
        box = gr.Dropdown(["a", "b"], value="a")
        box.change(lambda its: gr.skip(), [box], [box])
        box.input(lambda its: its, [box], [box])
    visit = page._Visit(demo)

    async def look() -> None:
        for fn in demo.fns.values():
            data = await demo.preprocess_data(fn, ["a"], visit)
            await demo.postprocess_data(fn, gr.skip() if fn is demo.fns[0] else data[0], visit)

    asyncio.run(look())
    held = len(visit.blocks_config.blocks), len(visit.config_values)
    for _ in range(5):
        asyncio.run(look())
    assert (len(visit.blocks_config.blocks), len(visit.config_values)) == held
    assert not visit.config_values, "a second copy of the page for each visit"
    from gradio import state_holder

    own = page._Visit.__bases__[0](demo)
    assert {name: type(its) for name, its in vars(own).items()} == {name: type(its) for name, its in vars(visit).items()}, "Gradio keeps something else of a visit"
    page.make_app(page.Page(None))

    assert type(state_holder.StateHolder.__getitem__.__globals__["SessionState"](demo)) is page._Visit


def test_the_page_s_process_has_no_heap_for_each_thread(tmp_path):
    """Else it grows with every burst of clicks, though nothing in it does."""
    code = """
import ctypes, sys, threading
from tuner.ui import app
libc = ctypes.CDLL(None)
libc.fopen.restype, libc.malloc.restype = ctypes.c_void_p, ctypes.c_void_p
if sys.argv[2] == "held":
    app._hold_little()
here = threading.Barrier(12)
def work():
    libc.malloc(ctypes.c_size_t(50_000))
    here.wait()
threads = [threading.Thread(target=work) for _ in range(12)]
[its.start() for its in threads]
[its.join() for its in threads]
file = libc.fopen(sys.argv[1].encode(), b"w")
libc.malloc_info(0, ctypes.c_void_p(file))
libc.fclose(ctypes.c_void_p(file))
import pyarrow
print(pyarrow.default_memory_pool().backend_name, open(sys.argv[1]).read().count("<heap "))
"""
    found = {}
    for how in ("held", "as it comes"):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "heaps"), how], capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=True)
        found[how] = done.stdout.split()
    assert found["held"][0] == "system" != found["as it comes"][0] and int(found["held"][1]) <= 2 < int(found["as it comes"][1])


def test_no_thread_stays_behind_a_download():
    """Each fetch draws its progress with a class of its own, and tqdm gives each class a thread that never ends."""
    before = threading.active_count()
    for _ in range(3):
        with hub._progress_bar(lambda done, total: None, 10)(total=10, unit="B") as bar:
            bar.update(10)
    assert threading.active_count() == before
