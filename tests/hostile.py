"""Repositories that mean harm, built on the fly: each would run code, read what is not its own, or take a machine down."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save

PROBED = ("Hello, who are you?", "What is a tree?")  # what a template is tried on; see tuner/eyes.py


class Hostile(NamedTuple):
    """One repository.

    Args:
        change: (the files of a good one, Traps) -> the hostile ones.
        words: what is said of it, a regular expression.
    """

    name: str
    change: Callable
    words: str


class Traps(NamedTuple):
    """Where harm would show.

    Args:
        marker: a file that no code but a repository's would make.
        outside: a file that no repository may read; it holds SECRET.
    """

    marker: Path
    outside: Path
    url: str


SECRET = "canary-outside-7f3a"


class _Run:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def pickled(traps: Traps) -> bytes:
    """A pickle that makes the marker when it is loaded."""
    return pickle.dumps(_Run(traps.marker))


def code(traps: Traps) -> bytes:
    return f"open({str(traps.marker)!r}, 'w')\n".encode()


def config(files: dict, **changes) -> dict:
    """The same files with another config.json; a value of None takes a key away."""
    its = json.loads(files["config.json"]) | changes
    return files | {"config.json": json.dumps({key: value for key, value in its.items() if value is not None}).encode()}


def tokens(files: dict, **changes) -> dict:
    return files | {"tokenizer_config.json": json.dumps(json.loads(files["tokenizer_config.json"]) | changes).encode()}


def without(files: dict, *names: str) -> dict:
    return {name: data for name, data in files.items() if name not in names}


def header(told: dict | bytes, size: int | None = None, rest: bytes = b"") -> bytes:
    """A safetensors file with this header; `size` is the length that it claims."""
    body = told if isinstance(told, bytes) else json.dumps(told).encode()
    return struct.pack("<Q", len(body) if size is None else size) + body + rest


def tensor(shape: list, end: int = 4) -> dict:
    return {"model.embed_tokens.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}


def index(files: dict, shard: str) -> dict:
    told = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": shard}}
    return without(files, "model.safetensors") | {
        "model-00001-of-00001.safetensors": files["model.safetensors"], "model.safetensors.index.json": json.dumps(told).encode(),
    }


_CODE = "asks for code from the Hub"
BASES = [
    Hostile("pickle-only", lambda f, t: without(f, "model.safetensors") | {"pytorch_model.bin": pickled(t)}, "no safetensors weights.*they can run code"),
    Hostile("auto-map", lambda f, t: config(f, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}) | {"modeling_evil.py": code(t)}, f"{_CODE} \\(auto_map"),
    Hostile("auto-map-below", lambda f, t: config(f, text_config={"auto_map": {"AutoConfig": "bob/other--evil.Evil"}}), _CODE),
    Hostile("auto-map-tokenizer", lambda f, t: tokens(f, auto_map={"AutoTokenizer": ["evil.Evil", None]}) | {"evil.py": code(t)}, _CODE),
    Hostile("pipelines", lambda f, t: config(f, custom_pipelines={"x": {"impl": "evil.Evil"}}), _CODE),
    Hostile("kernel", lambda f, t: config(f, _attn_implementation="kernels-community/flash-attn"), f"{_CODE} \\(_attn_implementation"),
    Hostile("kernel-public", lambda f, t: config(f, attn_implementation="bob/kernel"), _CODE),
    Hostile("kernel-internal", lambda f, t: config(f, _attn_implementation_internal="bob/kernel@main:x"), _CODE),
    Hostile("kernel-below", lambda f, t: config(f, _attn_implementation={"text_config": "sdpa", "": "bob/kernel"}), _CODE),
    Hostile("kernel-experts", lambda f, t: config(f, experts_implementation="bob/kernel"), _CODE),
    Hostile("use-kernels", lambda f, t: config(f, use_kernels=True), _CODE),
    Hostile("vocab-file", lambda f, t: tokens(f, vocab_file=str(t.outside)), "names a file outside of its repository \\(vocab_file"),
    Hostile("merges-file", lambda f, t: tokens(f, merges_file="../../outside.txt"), "names a file outside"),
    Hostile("gguf-file", lambda f, t: tokens(f, gguf_file="x.gguf", from_slow=True), _CODE),
    Hostile("weights-outside", lambda f, t: config(f, transformers_weights="../../x.safetensors"), "names a file outside"),
    Hostile("index-outside", lambda f, t: index(f, f"../../../..{t.outside}"), "which is no weights file of it"),
    Hostile("index-absolute", lambda f, t: index(f, str(t.outside)), "which is no weights file of it"),
    Hostile("index-pickle", lambda f, t: index(f, "pytorch_model.bin") | {"pytorch_model.bin": pickled(t)}, "which is no weights file of it"),
    Hostile("index-nothing", lambda f, t: index(f, "x") | {"model.safetensors.index.json": b"[[[]]]"}, "cannot be read as JSON"),
    Hostile("names", lambda f, t: without(f, "model.safetensors") | {"../../model.safetensors": b"x", "a\nb.safetensors": b"x", "x/model.safetensors": b"x"}, "no safetensors weights"),
    Hostile("adapter-inside", lambda f, t: f | {"adapter_config.json": json.dumps({"base_model_name_or_path": str(t.outside)}).encode()}, "is an adapter, not a base model"),
    Hostile("quantised", lambda f, t: config(f, quantization_config={"quant_method": "gptq", "bits": 4}), "is quantised already \\(gptq\\)"),
    Hostile("layers", lambda f, t: config(f, num_hidden_layers=10**9), "num_hidden_layers is 1000000000, which no model has"),
    Hostile("vocabulary", lambda f, t: config(f, vocab_size=10**12), "vocab_size is 1000000000000, which no model has"),
    Hostile("experts", lambda f, t: config(f, num_local_experts=10**7), "num_local_experts"),
    Hostile("claims", lambda f, t: config(f, hidden_size=16_384, num_hidden_layers=126), "claims .* billion parameters and its weights hold"),
    Hostile("digits", lambda f, t: f | {"config.json": b'{"hidden_size": ' + b"9" * 5_000 + b"}"}, "cannot be read as JSON"),
    Hostile("deep", lambda f, t: f | {"config.json": b'{"a":' * 50_000 + b"1" + b"}" * 50_000}, "cannot be read as JSON"),
    Hostile("nested", lambda f, t: f | {"config.json": b'{"a":' * 500 + b"1" + b"}" * 500}, "larger or deeper than any model's"),
    Hostile("wide", lambda f, t: config(f, junk=[0] * 500_000), "config.json of .* has 1,.* bytes|larger or deeper"),
    Hostile("no-object", lambda f, t: f | {"config.json": b"[1, 2]"}, "cannot be read as JSON"),
    Hostile("header-long", lambda f, t: f | {"model.safetensors": header(b"{}", 10**15)}, "weights of .* cannot be read"),
    Hostile("header-deep", lambda f, t: f | {"model.safetensors": header(b'{"a":' * 40_000 + b"1" + b"}" * 40_000)}, "weights of .* cannot be read"),
    Hostile("header-shape", lambda f, t: f | {"model.safetensors": header(tensor([10**9, 10**9]))}, "billion parameters; the most that is loaded here"),
    Hostile("header-negative", lambda f, t: f | {"model.safetensors": header(tensor([-5, 7]))}, "name no tensors"),
    Hostile("header-words", lambda f, t: f | {"model.safetensors": header(tensor(["many", {}]))}, "weights of .* cannot be read"),
    Hostile("header-empty", lambda f, t: f | {"model.safetensors": header({})}, "name no tensors"),
    Hostile("header-cut", lambda f, t: f | {"model.safetensors": f["model.safetensors"][:50]}, "weights of .* cannot be read"),
    Hostile("tokenizer-large", lambda f, t: f | {"special_tokens_map.json": b" " * (2**20 + 1)}, "which no model's has"),
]

_HUGE = "{{ (10**(10**8))|string }}"
_ENDLESS = "does not come to an end within 2 seconds"
_REFUSES = "chat template refuses this conversation"
_PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"


def template(text: str) -> Callable:
    return lambda f, t: f | {"chat_template.jinja": text.replace("MARKER", str(t.marker)).replace("OUTSIDE", str(t.outside)).encode()}


TEMPLATES = [
    Hostile("counts", template("{% for i in range(10**12) %}x{% endfor %}" + _PLAIN), _REFUSES),
    Hostile("loops", template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + _PLAIN), _ENDLESS),
    Hostile("multiplies", template(_HUGE + _PLAIN), _ENDLESS),
    Hostile("long-text", template("{{ 'a' * 3000000000 }}" + _PLAIN), "GiB of memory"),
    Hostile(  # too large at its first doubling: whether memory or time ran out first would be the machine's mood
        "doubles", template("{% set n = namespace(x='a' * (messages|length * 450000000)) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}" + _PLAIN), "GiB of memory",
    ),
    Hostile("joins", template("{% set x = ('a' * 100000000) %}{{ [x] * 500 | join }}{{ ([x] * 500) | join }}" + _PLAIN), f"{_REFUSES}|GiB of memory|{_ENDLESS}"),
    Hostile("recursion", template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}" + _PLAIN), _REFUSES),
    Hostile("class", template("{{ ''.__class__.__mro__[1].__subclasses__()[0] }}" + _PLAIN), _REFUSES),
    Hostile("lipsum", template("{{ lipsum.__globals__['os'].system('touch MARKER') }}" + _PLAIN), _REFUSES),
    Hostile("cycler", template("{{ cycler.__init__.__globals__.os.popen('touch MARKER').read() }}" + _PLAIN), _REFUSES),
    Hostile("attribute", template("{{ (messages|attr('__class__')).mro() }}" + _PLAIN), _REFUSES),
    Hostile("includes", template("{% include 'OUTSIDE' %}" + _PLAIN), f"{_REFUSES}|larger"),
    Hostile("format", template("{{ '{0.__class__.__init__.__globals__}'.format(messages) }}" + _PLAIN), _REFUSES),
    Hostile("too-long", template("{# " + "x" * 150_000 + " #}" + _PLAIN), "chat template has"),
    Hostile("says-nothing", template("nothing"), "leaves out what the user says"),
    Hostile("broken", template("{% for %}"), _REFUSES),
]
# Well behaved on what it is tried on, and a bomb on anything else; not a constant, which Jinja would work out beforehand.
LATER = Hostile("later", template(f"{{% if messages[0]['content'] not in {PROBED} %}}{{{{ (10**(messages|length * 10**8))|string }}}}{{% endif %}}" + _PLAIN), _ENDLESS)

_LORA = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((8, 64), np.float32), "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": np.zeros((64, 8), np.float32)}


def adapter(base_id: str = "bob/base", **changes) -> dict[str, bytes]:
    """A good adapter's files, with changes to its config."""
    told = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_id, "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    return {"adapter_config.json": json.dumps(told | changes).encode(), "adapter_model.safetensors": save(_LORA)}


ADAPTERS = [
    Hostile("pickle-only", lambda f, t: without(f, "adapter_model.safetensors") | {"adapter_model.bin": pickled(t)}, "is not a PEFT adapter with safetensors weights"),
    Hostile("base-is-a-path", lambda f, t: adapter(str(t.outside)), "which is not a Hub id"),
    Hostile("base-above", lambda f, t: adapter("../.."), "which is not a Hub id"),
    Hostile("base-here", lambda f, t: adapter("models/local"), "models/local does not exist on the Hub"),
    Hostile("revision", lambda f, t: adapter(revision="../../../../etc"), "is not a branch, tag or commit"),
    Hostile("library", lambda f, t: adapter(auto_mapping={"base_model_class": "Evil", "parent_library": "evil"}), "asks for the library 'evil'"),
    Hostile("library-below", lambda f, t: adapter(auto_mapping={"parent_library": "transformers.models.llama.modeling_llama; import os"}), "asks for the library"),
    Hostile("library-text", lambda f, t: adapter(auto_mapping="os"), "asks for the library"),
    Hostile("auto-map", lambda f, t: adapter(auto_map={"x": "evil.Evil"}), "asks for code"),
    Hostile("pattern", lambda f, t: adapter(target_modules="(a+)+$"), "names its layers by a pattern"),
    Hostile("patterns", lambda f, t: adapter(target_modules=["q_proj", "(.*a){30}"]), "names its layers by a pattern"),
    Hostile("rank", lambda f, t: adapter(r=10**9), "says r is 1000000000"),
    Hostile("rank-claimed", lambda f, t: adapter(r=4096), "claims the rank 4,096 and its weights have 8"),
    Hostile("rank-pattern", lambda f, t: adapter(rank_pattern={"(a+)+$": 8}), "has a rank_pattern that is no list of layers"),
    Hostile("rank-of-one", lambda f, t: adapter(rank_pattern={"q_proj": 10**8}), "says rank_pattern is 100000000"),
    Hostile("weights-damaged", lambda f, t: f | {"adapter_model.safetensors": header(b"{}", 10**15)}, "holds no LoRA weights that can be read"),
    Hostile("weights-other", lambda f, t: f | {"adapter_model.safetensors": save({"x": np.zeros(3, np.float32)})}, "holds no LoRA weights"),
    Hostile("deep", lambda f, t: f | {"adapter_config.json": b'{"a":' * 50_000 + b"1" + b"}" * 50_000}, "is not a LoRA adapter"),
]

_ROW = b'{"prompt": "p", "completion": "c"}\n'


def data_files(*paths: str) -> dict[str, bytes]:
    told = "".join(f"\n  - split: train\n    path: {json.dumps(path)}" for path in paths)
    return {"README.md": f"---\nconfigs:\n- config_name: default\n  data_files:{told}\n---\n".encode(), "train.jsonl": _ROW}


DATASETS = [
    Hostile("script", lambda f, t: {"script.py": code(t)}, "cannot be read as rows: Dataset scripts are no longer supported"),
    Hostile("script-beside", lambda f, t: {"script-beside.py": code(t), "train.jsonl": _ROW}, "Dataset scripts are no longer supported"),
    Hostile("absolute", lambda f, t: data_files(str(t.outside)), "cannot be read as rows|not one of its own"),
    Hostile("above", lambda f, t: data_files("../../../../" + str(t.outside)), "cannot be read as rows|not one of its own"),
    Hostile("address", lambda f, t: data_files(f"{t.url}/leak/rows.jsonl"), "cannot be read as rows|not one of its own"),
    Hostile("other", lambda f, t: data_files("hf://datasets/alice/private/train.jsonl"), "cannot be read as rows|not one of its own"),
    Hostile("file-address", lambda f, t: data_files(f"file://{t.outside}"), "cannot be read as rows|not one of its own"),
    Hostile("pickle", lambda f, t: {"rows.pkl": pickled(t)}, "cannot be read as rows|not rows"),
    Hostile("pickle-archive", lambda f, t: {"rows.tar": b"\0" * 10_240}, "cannot be read as rows|not rows"),
    Hostile("pictures", lambda f, t: {"a.png": b"\x89PNG", "metadata.jsonl": b'{"file_name": "../../outside"}\n'}, "cannot be read as rows|not rows"),
]
DATASET_IDS = [
    "csv", "json", "pandas", "..", "/etc", "./x", "models/../x", "bob/..", "hf://datasets/bob/x", "https://evil.example/x", "file:///etc/passwd", "buckets/bob/x",
    "bob/x/y", "bob\\x", "bob/x@main", "bob/x?a", "bob/x\ny", "", " ",
]
