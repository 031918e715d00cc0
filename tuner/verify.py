"""Whether a published adapter, loaded by plain PEFT, computes what the run's own folder does; a process of its own."""

import json
import sys
from pathlib import Path

import torch

from tuner import models, redaction, tasks
from tuner.home import write_json

# Plain text of several kinds; what is compared is every logit at every token.
PROMPTS = (
    "The capital of France is", "Write one sentence about the sea.", "def add(a, b):\n    return", "1, 2, 3, 4,",
    "Ünïcödé, 漢字 and emoji 🙂 too.",
)


def main(question_path: str, verdict_path: str) -> int:
    """Answer the question (see `publish.compare`) with a file: {"error"}, or {"prompts", "tokens", "moved"}.

    moved: the largest change that the adapter makes to a logit of the base.
    """
    asked = json.loads(Path(question_path).read_text("utf-8"))
    write_json(Path(verdict_path), compare(asked))
    return 0


def compare(asked: dict) -> dict:
    """The verdict. Both adapters go onto the same base in memory, one after the other, as PEFT's own documentation does it."""
    from peft import PeftModel

    task = tasks.get(asked["task"])
    tokenizer = task.load_tokenizer(asked["base_dir"])
    model = load_plain(asked)
    asked_of = [task.verify_inputs(tokenizer, text, model) for text in PROMPTS]
    bare = logits(model, asked_of)
    found = []
    for folder in (asked["own_dir"], asked["published_dir"]):
        models.read_adapter_config(Path(folder))  # PEFT would take pickled weights where there are no others
        tuned = PeftModel.from_pretrained(model, folder)
        tuned.eval()
        found.append(logits(tuned, asked_of))
        model = tuned.unload()
    own, published = found
    if not all(torch.isfinite(its).all() for its in own + published):
        return {"error": "The adapter computes numbers that are not finite, so it cannot be used. Train it again with a lower learning rate."}
    moved = largest(own, bare)
    if not all(torch.equal(a, b) for a, b in zip(own, published)):
        return {"error": f"Loaded by plain PEFT, the published adapter computes otherwise than this run's own (by up to {largest(own, published):.3g}). Push again."}
    if moved == 0.0:  # PEFT only warns where no weight of the file finds its place
        return {"error": "Loaded by plain PEFT, the adapter changes nothing of what the base computes. It does not fit this base model."}
    return {"prompts": len(asked_of), "tokens": sum(next(iter(its.values())).numel() for its in asked_of), "moved": moved}


def load_plain(asked: dict):
    """The base as anybody would load it, in the run's quantisation and precision; nothing of this project's speed."""
    from transformers import BitsAndBytesConfig
    from transformers import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    dtype, device = getattr(torch, asked["precision"]), models.device_name()
    wanted = {}
    if asked["quantisation"] == "nf4":
        wanted["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=sorted({"lm_head", *asked["kept_16bit"], *asked.get("heads", ())}),
        )
    torch.manual_seed(0)  # a head that is not in the base is random until an adapter brings it
    task = tasks.get(asked["task"])
    model = task.model_class().from_pretrained(
        asked["base_dir"], dtype=dtype, attn_implementation=asked["attention"], use_safetensors=True, local_files_only=True,
        trust_remote_code=False, device_map={"": 0} if device == "cuda" else {"": "cpu"}, **task.loading(asked["base_dir"], asked), **wanted,
    )
    models.guard_4bit(model)
    return model.eval()


@torch.inference_mode()
def logits(model, asked_of: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    """One float32 tensor on the CPU for each input: (T, V) of a language model, (C,) of a classifier."""
    return [model(**{name: its.to(model.device) for name, its in one.items()}).logits[0].float().cpu() for one in asked_of]


def largest(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(some, others))


if __name__ == "__main__":
    redaction.install()
    sys.exit(main(*sys.argv[1:]))
