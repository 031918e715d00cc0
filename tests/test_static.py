"""What no line of the app may do, whoever writes it: ruff's rules of that kind, and ours for what it does not know; each shown to fire."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
APP = [ROOT / "app.py", *sorted((ROOT / "tuner").rglob("*.py"))]

# Ruff's rule -> a line that it must refuse in the app's own code.
RUFF = {
    "S101": "assert given > 0", "S102": "exec(given)", "S108": "open('/tmp/known.txt', 'w')", "S301": "pickle.loads(given)",
    "S302": "marshal.loads(given)", "S306": "tempfile.mktemp()", "S307": "eval(given)", "S324": "hashlib.md5(given)", "S506": "yaml.load(given)",
    "S501": "requests.get(given, timeout=1, verify=False)", "S602": "subprocess.run(given, shell=True)", "S605": "os.system(given)",
    "S310": "urllib.request.urlopen(given)", "S314": "xml.etree.ElementTree.parse(given)",
    "S701": "jinja2.Environment(loader=given)", "S110": "try:\n    given()\nexcept Exception:\n    pass",
}
_IMPORTS = "import hashlib, marshal, os, pickle, subprocess, tempfile, urllib.request, xml.etree.ElementTree\nimport jinja2, requests, yaml\n\n\ngiven = 1\n"


def test_ruff_refuses_each_of_these_in_the_app(tmp_path):
    """By this project's own settings; that the app is clean is what `make lint` says."""
    code = _IMPORTS + "".join(f"{line}\n" for line in RUFF.values())
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "S", "--output-format", "json", "--stdin-filename", "tuner/odd.py", "-"],
        input=code, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "RUFF_NO_CACHE": "true"},
    )
    found = {its["code"] for its in json.loads(done.stdout)}
    assert set(RUFF) <= found, set(RUFF) - found
    settings = (ROOT / "pyproject.toml").read_text("utf-8")
    ignored = set(re.findall(r'"(S\d+)"', settings.split("[tool.ruff.lint.per-file-ignores]")[0].split("ignore =")[1]))
    assert re.search(r'select = \[.*"S"', settings) and not ignored & set(RUFF)
    quiet = [(path.name, line) for path in APP for line in path.read_text("utf-8").splitlines() if re.search(r"noqa:.*\bS\d", line)]
    assert not quiet, "a rule about strangers is switched off in a line"


# Ours ---------------------------------------------------------------------------------------------------------------


def _calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def runs_code(tree: ast.AST) -> Iterator[ast.AST]:
    """Pickles under any name, and texts made into code."""
    forbidden = {"compile", "eval", "exec", "os.popen", "joblib.load", "dill.load", "dill.loads", "shelve.open", "runpy.run_path", "importlib.import_module"}
    yield from (call for call, name in _calls(tree) if name in forbidden or name.endswith((".unsafe_load", ".full_load")))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
            if {name.split(".")[0] for name in names} & {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "kernels"}:
                yield node


_MUST_BE = {"trust_remote_code": False, "allow_pickle": False, "shell": False, "use_safetensors": True, "weights_only": True, "verify": True}


def trusts(tree: ast.AST) -> Iterator[ast.AST]:
    """A safety that is switched off, or by anything but a plain word in the code: text-generation-webui lost to that."""
    for call, _ in _calls(tree):
        for keyword in call.keywords:
            if keyword.arg in _MUST_BE and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is _MUST_BE[keyword.arg]):
                yield call


def loads_unsafely(tree: ast.AST) -> Iterator[ast.AST]:
    """A model loaded without saying that its weights are safetensors and its code stays where it is; torch.load without a word."""
    for call, name in _calls(tree):
        if name == "torch.load" and "weights_only" not in {its.arg for its in call.keywords}:
            yield call
        if name.endswith(".from_pretrained") and not re.search(r"Tokenizer|Config|Peft", name):
            if not {"use_safetensors", "trust_remote_code"} <= {its.arg for its in call.keywords} and "gguf_file" not in ast.unparse(call):
                yield call


_ASKS_THE_HUB = {
    "snapshot_download", "hf_hub_download", "load_dataset", "whoami", "model_info", "dataset_info", "auth_check", "create_repo", "create_commit",
    "upload_file", "upload_folder", "list_repo_tree", "list_repo_files", "get_safetensors_metadata", "update_repo_settings", "delete_repo", "repo_exists",
}


def acts_as_nobody_knows_whom(tree: ast.AST) -> Iterator[ast.AST]:
    """A request to the Hub that does not say with whose token: the client would take the machine's own."""
    for call, name in _calls(tree):
        if name.rsplit(".", 1)[-1] not in _ASKS_THE_HUB or name in ("whoami", "hub.whoami", "upload_folder"):  # the latter are ours
            continue
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if "local_files_only" in given:
            continue
        if "token" not in given or (isinstance(given["token"], ast.Constant) and given["token"].value is not False):
            yield call


_TELLS = re.compile(
    r"(?:^|\.)(?:print|_say|UserError|Transient|Unreachable|write_json|write_whole|write_text|spawn|Popen|run|debug|info|warning|error|exception|critical"
    r"|Error|Warning|Info|HTML|Markdown|State|Textbox|notice|say)$"
)


def _is_secret(node: ast.AST) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name in ("token", "secret", "authorization", "access_token") or name.endswith(("_token", "_secret"))


def tells_a_token(tree: ast.AST) -> Iterator[ast.AST]:
    """A token in what is printed, logged, raised, written, drawn, or given to another process."""
    for call, name in _calls(tree):
        if not _TELLS.search(name):
            continue
        for value in [*call.args, *(keyword.value for keyword in call.keywords)]:
            # What only decides, or is handed to a function, is not what is told.
            used = {id(part) for its in ast.walk(value) if isinstance(its, (ast.IfExp, ast.Call)) for part in ast.walk(its.test if isinstance(its, ast.IfExp) else its)}
            if any(_is_secret(part) and id(part) not in used for part in ast.walk(value)):
                yield call


def names_no_page(tree: ast.AST) -> Iterator[ast.AST]:
    """Something that Gradio offers and that has let strangers read files, or the machine's address out."""
    unwanted = {"FileExplorer", "ParamViewer", "Gallery", "Audio", "Video", "DeepLinkButton", "load", "Interface", "flagging", "DownloadButton"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gr" and node.attr in unwanted:
            yield node


RULES: dict[Callable, tuple[list[str], list[str]]] = {
    runs_code: (
        ["import pickle", "from joblib import load", "compile(given, 'x', 'exec')", "os.popen(given)", "yaml.unsafe_load(given)", "importlib.import_module(given)"],
        ["re.match(a, b)", "json.loads(given)"],
    ),
    trusts: (
        ["f(trust_remote_code=True)", "f(trust_remote_code=asked)", "np.load(x, allow_pickle=True)", "f(use_safetensors=None)", "torch.load(x, weights_only=False)", "run(x, shell=flag)"],
        ["f(trust_remote_code=False, use_safetensors=True)"],
    ),
    loads_unsafely: (
        ["torch.load(x)", "AutoModel.from_pretrained(x)", "kind.from_pretrained(x, use_safetensors=True)"],
        ["AutoModel.from_pretrained(x, use_safetensors=True, trust_remote_code=False)", "AutoTokenizer.from_pretrained(x)"],
    ),
    acts_as_nobody_knows_whom: (
        ["HfApi().model_info(x)", "snapshot_download(x, token=None)", "api.create_repo(x, token=True)"],
        ["HfApi().model_info(x, token=token or False)", "snapshot_download(x, local_files_only=True)", "hub.whoami(token)"],
    ),
    tells_a_token: (
        [
            "print(token)", "log.warning('sent %s', visitor.token)", "raise UserError(f'bad {token}')", "write_json(path, {'token': token})",
            "child.spawn('tuner', token)", "subprocess.run(['hf', hf_token])", "gr.State(token)", "log.error('with ' + access_token)",
        ],
        ["print(tokens)", "log.warning('%s tokens', learned_tokens)", "say(f'{user if token else 0}')", "raise UserError('Your token is old.')", "print(hub.whoami(token))"],
    ),
    names_no_page: (["gr.DownloadButton('x')", "gr.load('x')"], ["gr.HTML('x')"]),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_each_rule_refuses_what_it_is_for(rule):
    """And nothing that is fine."""
    bad, good = RULES[rule]
    assert not [line for line in bad if not list(rule(ast.parse(line)))]
    assert not [line for line in good if list(rule(ast.parse(line)))]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_line_of_the_app_breaks_it(rule):
    found = [f"{path.relative_to(ROOT)}:{node.lineno}" for path in APP for node in rule(ast.parse(path.read_text("utf-8")))]
    assert not found, rule.__doc__


def test_every_process_of_ours_prints_through_the_redaction():
    """Each module that is started as a process installs it first, and so does app.py before it imports Gradio."""
    ours = [path for path in APP if 'if __name__ == "__main__"' in path.read_text("utf-8") and path.name not in ("starter.py", "app.py")]
    ours.append(ROOT / "tuner" / "__main__.py")
    assert {"check.py", "verify.py", "machine.py", "chat_worker.py"} <= {path.name for path in ours}
    assert not [path.name for path in ours if "redaction.install(" not in path.read_text("utf-8")]
    app = (ROOT / "app.py").read_text("utf-8")
    assert 0 < app.index("redaction.install(") < app.index("from tuner.ui.app")


# Known vulnerabilities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said, code, ends, words", [
    ("No known vulnerabilities found", 0, 0, "No known vulnerabilities found"),
    ("ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed", 1, 0, "Skipped"),
    ("requests.exceptions.ConnectionError: HTTPSConnectionPool(host='pypi.org'): Max retries exceeded", 1, 0, "Skipped"),
    ("No known vulnerabilities found\n" + "x  Dependency not found on PyPI and could not be audited: x\n" * 40, 0, 0, "Skipped"),
    ("Found 1 known vulnerability in 1 package\nName Version ID\nurllib3 1.0 PYSEC-1", 1, 1, "PYSEC-1"),
    ("Traceback: something of its own", 1, 1, "something of its own"),
], ids=["clean", "unreachable", "no network", "no database", "found", "fault"])
def test_ci_audits_what_is_installed_and_says_when_it_cannot(tmp_path, said, code, ends, words):
    """Found vulnerabilities fail it; a database that cannot be reached does not, and is said."""
    (tmp_path / "pip_audit.py").write_text(f"import sys\nprint({said!r}, file=sys.stderr)\nsys.exit({code})\n")
    done = subprocess.run(
        [str(ROOT / ".ci" / "audit")], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path), "PY": sys.executable},
    )
    assert done.returncode == ends and words in done.stdout + done.stderr, done.stdout + done.stderr


def test_ci_runs_the_audit_and_the_tests():
    run = (ROOT / ".ci" / "run").read_text("utf-8")
    assert ".ci/audit" in run and "make test" in run
