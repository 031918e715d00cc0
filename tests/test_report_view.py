"""The report on the page: the same figures as in the file and the card, bars to scale, and nothing of a row taken as HTML."""

import re

from tests.test_figures import report
from tuner import figures, tasks
from tuner.ui import report_view
from tuner.ui.drawing import text


def row(**changes) -> dict:
    its = {"row": 7, "prompt": "Where?", "wanted": "There.", "base": {"loss": 2.0, "text": "No idea", "ended": False}, "tuned": {"loss": 1.0, "text": "There", "ended": True}}
    return its | changes


def drawn(improved=(), worsened=(), **changes) -> str:
    made = report(**changes)
    made |= {"rows": {"improved": list(improved), "worsened": list(worsened)}, "says": figures.verdicts(made, 40)}
    return report_view.whole(made, tasks.get("chat"))


def test_every_figure_and_sentence_is_there():
    page, made = drawn([row()]), report()
    for its in figures.measures(made):
        shown = figures.shown(its)
        assert all(f">{text(shown[name])}<" in page for name in ("name", "base", "tuned")), shown
        assert f"change {text(shown['change'])}<" in page and text(shown["of"]) in page
        assert f">{figures.verdict(its)}</span>" in page
    assert all(text(words) in page for words in figures.verdicts(made, 40))
    assert "What " not in page and "forget less" not in page
    fell = drawn(probe__fell=True, probe__says="General ability fell: much.")
    assert "forget less" in fell and fell.count("General ability fell: much.") == 1 and '<div class="notice warning" role="status"><b>Mind</b><span>General ability fell' in fell


def test_the_bars_are_to_scale_and_the_whisker_is_the_interval_of_the_change():
    page = drawn()
    loss = re.search(r"Loss \(nats a token\).*?change", page, re.DOTALL)[0]
    assert re.findall(r'width:([\d.]+)%"></span>', loss) == ["100.00", "75.00"]  # 4.0 and 3.0
    assert 'left:70.00%;width:10.00%' in loss  # 2.8 to 3.2
    share = re.search(r"Token accuracy.*?change", page, re.DOTALL)[0]
    assert re.findall(r'width:([\d.]+)%"></span>', share) == ["31.00", "40.20"] and "left:36.00%;width:8.00%" in share
    assert "whisker" not in re.search(r"Loss \(nats a token\).*?change", drawn(difference__loss={"low": None, "high": None}), re.DOTALL)[0]


def test_rows_stand_side_by_side_and_what_is_missing_is_said():
    page = drawn([row(), row(row=8, base={"loss": 2.0, "text": None, "ended": None}, tuned={"loss": 1.5, "text": None, "ended": None})])
    assert page.index("No idea") < page.index(">There<") and "did not stop" in page and "Row 7" in page
    assert page.count("there was no time for it") == 2 and "Rows that worsened most, side by side: there are none." in page
    assert "(nothing)" in drawn([row(tuned={"loss": 1.0, "text": "", "ended": True})])


def test_a_row_s_text_stays_text():
    evil = "<script>alert(1)</script> ${x} {{y}} <b>"
    page = drawn([row(prompt=evil, wanted=evil, tuned={"loss": 1.0, "text": evil, "ended": True})])
    assert "<script" not in page and "{{" not in page and "${" not in page and page.count("&lt;script&gt;") == 3
