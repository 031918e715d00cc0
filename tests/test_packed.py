"""A packed base: the same weights bit for bit, found only by what it was made of, never in the way of a run."""

import logging
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.small import small_base
from tuner import packed

PLAIN = {
    "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16",
    "llm_int8_skip_modules": ["lm_head"],
}
WHAT = ("LlamaForCausalLM", [], "bfloat16")


def quantised(folder, **its):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    more = {"quantization_config": BitsAndBytesConfig(**its)} if its else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": "cpu"}, local_files_only=True, **more)


def unpacked(model) -> dict[str, torch.Tensor]:
    """Every weight as it takes part in the arithmetic."""
    from bitsandbytes.functional import dequantize_4bit

    return {
        name: dequantize_4bit(its.data, its.quant_state) if hasattr(its, "quant_state") else its.data
        for name, its in model.named_parameters()
    }


def test_a_packed_base_has_the_same_weights_bit_for_bit_and_the_same_logits(home, base):
    fresh = quantised(base, **PLAIN)
    folder = packed.folder_of(base, *WHAT)
    assert not packed.is_ready(folder)
    assert packed.keep(fresh, folder) and packed.is_ready(folder)
    again = quantised(folder)
    kinds = {name: type(its) for name, its in fresh.named_modules()}
    assert {name: type(its) for name, its in again.named_modules()} == kinds
    before, after = unpacked(fresh), unpacked(again)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    for model in (fresh, again):  # see models.guard_4bit
        for layer in model.modules():
            if hasattr(layer, "support_avx512bf16_for_cpu"):
                layer.support_avx512bf16_for_cpu = False
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(fresh(ids).logits, again(ids).logits)


def test_a_packed_base_is_smaller_than_the_base(home, base):
    folder = packed.folder_of(base, *WHAT)
    packed.keep(quantised(base, **PLAIN), folder)
    sizes = [sum(file.stat().st_size for file in place.glob("*.safetensors")) for place in (base, folder)]
    assert sizes[1] < sizes[0] * 0.75  # its embedding stays in 16 bits, and is most of this model


def test_other_weights_or_other_choices_lie_elsewhere(home, tmp_path):
    one = small_base(tmp_path / "one")
    folder = packed.folder_of(one, *WHAT)
    assert packed.folder_of(one, *WHAT) == folder
    assert packed.folder_of(one, WHAT[0], ["model.layers.0.mlp.down_proj"], WHAT[2]) != folder
    assert packed.folder_of(one, WHAT[0], [], "float32") != folder
    weights = load_file(one / "model.safetensors")
    weights["model.norm.weight"] += 1
    other = tmp_path / "other"
    other.mkdir()
    save_file(weights, other / "model.safetensors")
    (other / "config.json").write_bytes((one / "config.json").read_bytes())
    assert packed.folder_of(other, *WHAT) != folder


def test_a_base_is_quantised_at_its_first_load_only(home, base, monkeypatch):
    """The second load gives the same weights, and reads nothing of the base but its config and its weights' hash."""
    from tuner import models
    from tuner.recipe import Recipe

    def loaded():
        return unpacked(models.load_base(base, Recipe(), {"precision": "bfloat16", "dequantised": False}).model)

    first = loaded()
    monkeypatch.setattr(packed, "keep", lambda *_: pytest.fail("it was quantised again"))
    second = loaded()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_nothing_is_kept_on_a_disk_that_is_nearly_full(home, base, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(packed.shutil, "disk_usage", lambda _: usage(2**40, 2**40, 2**30))
    folder = packed.folder_of(base, *WHAT)
    assert not packed.keep(quantised(base, **PLAIN), folder)
    assert not packed.is_ready(folder)


@pytest.mark.parametrize("when", ["in the middle", "at the end"])
def test_a_copy_that_fails_leaves_nothing_half_written(home, base, monkeypatch, when):
    model, folder = quantised(base, **PLAIN), packed.folder_of(base, *WHAT)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((model, "save_pretrained", fail) if when == "in the middle" else (packed.os, "replace", fail)))
    assert not packed.keep(model, folder)
    assert not packed.is_ready(folder)
    assert not list(folder.parent.glob(".packed-*"))


def test_a_damaged_copy_is_dropped_and_made_anew(home, base):
    from tuner import models
    from tuner.recipe import Recipe

    plan = {"precision": "bfloat16", "dequantised": False}
    before = {name: its.clone() for name, its in unpacked(models.load_base(base, Recipe(), plan).model).items()}  # some are views of the file
    (weights,) = (home / "models" / "packed").glob("*/model.safetensors")
    size = weights.stat().st_size
    half = weights.read_bytes()[: size // 2]
    weights.unlink()
    weights.write_bytes(half)
    after = unpacked(models.load_base(base, Recipe(), plan).model)
    assert all(torch.equal(before[name], after[name]) for name in before) and weights.stat().st_size == size
