"""What a run is said to need follows from the model's real sizes, and grows with what is asked for."""

import json
from dataclasses import replace

import pytest
import torch

from tests.small import small_base
from tests.small_run import small_run
from tests.test_models import FAMILIES
from tuner import models, quote, train
from tuner.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")

# meta-llama/Llama-3.1-8B-Instruct's config.json, where it matters.
LLAMA_8B = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_from_the_config_are_the_real_model_s(tmp_path, family):
    base = small_base(tmp_path / "base", family)
    config = json.loads((base / "config.json").read_text())
    loaded = models.load_base(base, Recipe(quantisation="none"), {"precision": "float32"})
    linears = {name: its for name, its in loaded.model.named_modules() if isinstance(its, torch.nn.Linear) and name != "lm_head"}
    its = quote.shape(config)
    assert its["linear"] == sum(layer.weight.numel() for layer in linears.values())
    others = {id(p): p.numel() for name, p in loaded.model.named_parameters() if "embed_tokens" in name or "lm_head" in name}
    assert its["embedded"] == sum(others.values())
    tuned = models.attach_lora(loaded.model, Recipe(lora_rank=4), "test/small")
    assert 4 * its["lora_per_rank"] == sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    assert quote.shape(loaded.model.config) == its  # a config object says the same as its JSON
    assert quote.shape({"text_config": config}) == its  # so does one that is wrapped, as Gemma 3's larger ones are


@pytest.fixture
def config(base) -> dict:
    return json.loads((base / "config.json").read_text())


def quoted(config, lengths=(100,) * 200, free=1000.0, **settings) -> dict:
    return quote.make(Recipe(**settings), config, list(lengths), sum(lengths) // 4, 1000, free)


def test_more_asked_for_needs_more(home, config):
    usual = quoted(config)
    longer, wider, more = quoted(config, epochs=6.0), quoted(config, lora_rank=64), quoted(config, (100,) * 400)
    assert longer["steps"] == more["steps"] == 2 * usual["steps"] and wider["steps"] == usual["steps"] == 75
    assert longer["tokens"] == more["tokens"] == 2 * usual["tokens"] == 2 * 60_000
    for its in (longer, wider, more):
        assert its["minutes"] > usual["minutes"]
        assert all(new["dollars"] > old["dollars"] for new, old in zip(its["hardware"], usual["hardware"]))
    assert wider["memory_gib"] > usual["memory_gib"] == longer["memory_gib"] == more["memory_gib"]
    assert quoted(config, (300,) * 200)["memory_gib"] > usual["memory_gib"]
    assert quoted(config, max_steps=10)["steps"] == 10
    assert usual["memory_gib"] == pytest.approx(sum(usual["parts"].values()))


def test_an_8b_model_fits_where_it_fits(home):
    """In 4 bits it does on a 15 GiB card, in 16 bits it does not; torchtune measured 7.4 GiB for it in 4 bits."""
    lengths, settings = (1024,) * 50, {"batch_size": 1}
    packed = quoted(LLAMA_8B, lengths, free=15.0, **settings)
    assert quote.shape(LLAMA_8B)["linear"] + quote.shape(LLAMA_8B)["embedded"] == pytest.approx(8.03e9, rel=1e-3)
    assert 5.0 < packed["parts"]["base"] < 6.0 and packed["fits"]
    assert packed["hardware"][0]["name"] == "T4 small" and packed["hardware"][0]["fits"]
    whole = quoted(LLAMA_8B, lengths, free=15.0, quantisation="none", **settings)
    assert whole["parts"]["base"] == pytest.approx(8.03e9 * 2 / 2**30, rel=1e-3) and not whole["fits"]
    assert [its["fits"] for its in whole["hardware"]] == [False, False, False, True, True]


def test_the_steps_quoted_are_the_steps_run_and_the_speed_is_remembered(base, home, quick, config):
    run = small_run(base)
    plan_steps = quote.make(run.recipe, config, [50] * 16, 100, 100, 8.0)
    assert plan_steps["steps"] == 8 and not plan_steps["measured"]
    train.train(run)
    assert run.read("plan")["steps"] == 8
    again = quote.make(run.recipe, config, [50] * 16, 100, 100, 8.0)
    assert again["measured"] and again["minutes"] != plan_steps["minutes"]


def test_a_small_machine_is_told_that_it_does_not_fit(home, config):
    assert quoted(config, free=8.0)["fits"] and not quoted(config, free=0.5)["fits"]


def test_the_starter_s_recipe_is_quoted_in_about_what_it_takes(home):
    """Two epochs of its 420 short rows took 3.2 minutes on two cores and 2.6 GiB; here it is one and a half."""
    smollm = {
        "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True,
    }
    told = quote.make(replace(Recipe(), epochs=1.5, max_tokens=256), smollm, [75] * 420, 420 * 20, 60 * 75, 16.0)
    assert 1 < told["minutes"] < 5 and told["memory_gib"] < 3 and told["fits"]
