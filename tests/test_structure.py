"""Rules of the project that can be checked: who imports what, what stands in the README; see test_static.py for what no line may call."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.small import small_tokenizer

ROOT = Path(__file__).resolve().parent.parent
PAGE = [ROOT / "app.py", *sorted((ROOT / "tuner" / "ui").rglob("*.py"))]
ENGINE = [path for path in sorted((ROOT / "tuner").rglob("*.py")) if path not in PAGE]
HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets")
LIGHT = (
    "recipe data pictures looks seeing variation image_sizes encode findings fixes check scan split near personal damage receipt turns child reading quote run events lease chat hub card starter home errors bases "
    "cli gate tasks tasks.chat tasks.text_labels tasks.image_labels tasks.labels tasks.columns tasks.label_card scores sizes plan cost hardware machine proposals watch finder enough trials figures probe blind "
    "publish outgoing provenance licences transfer labelling redaction eyes repository stream limits room places keeping homecoming clearing measuring stewardship identity sessions sharing"
).split()
# What the Space's builder adds to requirements.txt, see reference/ecosystem.md fact 3.
BUILDER = ["gradio[oauth,mcp]=={}", "uvicorn>=0.14.0", "websockets>=10.4", "spaces"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    """The top-level packages that a file imports anywhere, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def header() -> dict:
    """The Space's settings at the top of the README."""
    return yaml.safe_load((ROOT / "README.md").read_text("utf-8").split("---\n")[1])


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


# The boundary -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ENGINE, ids=name_of)
def test_the_engine_knows_no_page(path):
    """Only tuner/ui and app.py import gradio; the engine imports nothing of the page but from the command that serves it."""
    assert "gradio" not in imports(path)
    assert "tuner.ui" not in path.read_text("utf-8")


@pytest.mark.parametrize("path", PAGE, ids=name_of)
def test_the_page_knows_no_models(path):
    """Nothing on the page imports what loads torch, not even inside a function."""
    assert not imports(path) & {"torch", "transformers", "peft", "bitsandbytes", "accelerate"}


def test_the_light_modules_load_without_torch(tmp_path):
    """What the page imports from the engine leaves torch out, writes nothing and asks nobody."""
    code = f"""
import sys
for name in {LIGHT!r}: __import__("tuner." + name)
print(*[name for name in {HEAVY!r} if name in sys.modules])
"""
    assert python(code, TUNER_HOME=str(tmp_path / "home")) == ""
    assert not (tmp_path / "home").exists()


def test_the_page_loads_without_torch(tmp_path):
    """Importing app.py builds nothing heavy and serves nothing."""
    code = f"import sys, app; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    assert python(code, TUNER_HOME=str(tmp_path / "home")) == ""
    assert not (tmp_path / "home").exists()


def test_a_preview_needs_no_torch(tmp_path):
    """The page's process can encode rows: the tokenizer and the templates work without torch."""
    small_tokenizer(tmp_path)
    code = f"""
import app, sys
from tuner import encode
rows = encode.encode([dict(role="user", content="a"), dict(role="assistant", content="b <|im_end|>")],
                     encode.load_tokenizer({str(tmp_path)!r}), 99)
print(len(rows), rows[0].learned > 2, "torch" in sys.modules)
"""
    assert python(code) == "1 True False"


def test_there_is_no_drawer():
    """A file's name says what it is about."""
    drawers = {"utils", "util", "common", "helpers", "helper", "misc"}
    assert not [name_of(path) for path in [*ENGINE, *PAGE, *(ROOT / "tests").rglob("*.py")] if {path.stem, path.parent.name} & drawers]


# The README and the requirements ----------------------------------------------------------------------------------


def test_the_file_map_names_every_file():
    """And no file that is not there."""
    listed = set(re.findall(r"`((?:tuner/)[\w/]+\.\w+|app\.py)`", (ROOT / "README.md").read_text("utf-8")))
    there = {name_of(path) for path in (ROOT / "tuner").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert listed == there | {"app.py"}


def test_the_space_header_is_one_that_the_hub_takes():
    """The Hub refuses a push with a wrong one; a wrong version builds another app than was tested."""
    its = header()
    assert its["title"] and len(its["emoji"].rstrip("\ufe0f")) == 1
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {its["colorFrom"], its["colorTo"]} <= colours
    assert its["sdk"] == "gradio"
    assert (ROOT / its["app_file"]).is_file()
    assert 0 < len(its["short_description"]) <= 60
    assert re.search(r'^python_version: "3\.12"$', (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert its["license"] == "apache-2.0" and "Apache License" in (ROOT / "LICENSE").read_text("utf-8")


def test_visitors_sign_in_with_the_least_that_is_needed():
    """Repositories of their own to push to, and gated ones to read; nothing else of their account."""
    its = header()
    assert its["hf_oauth"] is True
    assert set(its["hf_oauth_scopes"]) == {"contribute-repos", "gated-repos"}
    assert its.get("hf_oauth_expiration_minutes", 480) <= 43_200


def test_the_space_fetches_the_starters_originals_while_it_is_built():
    """A Space does not install the packages that carry them."""
    fetched = [line.split()[0] for line in header()["preload_from_hub"]]
    assert set(fetched) == {"HuggingFaceTB/SmolLM2-135M-Instruct", "sentence-transformers/all-MiniLM-L6-v2"}


def requirements(name: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text("utf-8").splitlines())
    return [line for line in lines if line]


def test_the_gradio_of_the_requirements_is_the_spaces():
    [pin] = [line for line in requirements("requirements.txt") if line.startswith("gradio")]
    assert pin.split("==")[1] == header()["sdk_version"]


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements*.txt")), ids=name_of)
def test_every_requirement_is_bounded_above(path):
    """Next year's version of a library is somebody's decision, not an accident."""
    lines = requirements(path.name)
    assert lines
    assert not [line for line in lines if not re.search(r"(==|<=?)\s*\d", line)]


@pytest.mark.network
def test_the_space_builder_can_resolve_the_requirements(tmp_path):
    """One resolve with the builder's own additions, for the Space's Python; about 20 s."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--disable-pip-version-check", "--ignore-installed"]
    target = ["--python-version", header()["python_version"], "--only-binary=:all:", "--target", str(tmp_path / "nowhere")]
    probe = subprocess.run([*pip, "--no-deps", "--retries=0", "--timeout=10", "spaces"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"the package index cannot be reached: {(probe.stderr.strip().splitlines() or ['?'])[-1][:200]}")
    report = tmp_path / "report.json"
    tail = [line.format(header()["sdk_version"]) for line in BUILDER]
    done = subprocess.run(
        [*pip, *target, "--report", str(report), "-r", str(ROOT / "requirements.txt"), *tail], capture_output=True, text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    chosen = {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in json.loads(report.read_text("utf-8"))["install"]}
    assert chosen["gradio"] == header()["sdk_version"]
    assert tuple(map(int, chosen["torch"].split("+")[0].split(".")[:2])) <= (2, 13)  # the most that ZeroGPU's builder takes


# The demo ---------------------------------------------------------------------------------------------------------


def test_the_demo_dataset_is_what_the_readme_promises():
    """480 rows, 60 of them held out, no two alike, on many subjects."""
    lines = (ROOT / "presets" / "data" / "headlines.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 480
    assert [row["split"] for row in rows].count("test") == 60 and {row["split"] for row in rows} == {"train", "test"}
    for column in ("prompt", "completion"):
        said = [re.sub(r"\W+", " ", row[column]).strip().lower() for row in rows]
        assert all(said) and len(set(said)) == 480
    subjects = {row["topic"] for row in rows}
    assert len(subjects) >= 10 and {row["topic"] for row in rows if row["split"] == "test"} <= subjects
