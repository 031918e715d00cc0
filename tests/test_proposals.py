"""Where a recipe does not fit, the smallest change that makes it fit is found, and it does fit."""

from dataclasses import replace

import numpy as np
import pytest

from tests.test_quote import CARD, LLAMA_8B, TWO_CORES
from tuner import plan as plans
from tuner import proposals, quote, sizes
from tuner.recipe import Recipe

LLAMA = sizes.of_config(LLAMA_8B)
SMOL = sizes.of_config({
    "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True,
})
ROWS = quote.Rows(np.random.default_rng(0).integers(200, 2000, 300), 60_000, [300] * 40)
RIGID = {"gradient_checkpointing": "off", "micro_batch": 8, "max_tokens": 2048}


def made(recipe, its, free, reach, rows=ROWS, **changes) -> quote.Quote:
    rows = proposals.shorter(rows, changes["max_tokens"]) if "max_tokens" in changes else rows
    return quote.make(replace(recipe, **changes), its, rows, free, reach)


CASES = [
    (its, reach, free, settings)
    for its, reach, rooms in ((LLAMA, CARD, (6, 8, 10, 14, 22, 40, 70)), (SMOL, TWO_CORES, (0.9, 1.2, 1.6, 2.5, 4)))
    for free in rooms
    for settings in ({}, RIGID, {"quantisation": "none"}, {**RIGID, "quantisation": "none"}, {"lora_rank": 256}, {"micro_batch": 8}, {"lora_dropout": 0.1})
]


@pytest.mark.parametrize("its, reach, free, settings", CASES)
def test_what_is_proposed_fits_and_nothing_less_of_it_does(home, its, reach, free, settings):
    recipe = Recipe(**{"max_tokens": 2048, **settings})
    found = proposals.propose(recipe, its, ROWS, free, reach)
    if made(recipe, its, free, reach).fits:
        assert found == []
        return
    for one in found:
        assert one.settings and "batch_size" not in one.settings
        assert one.quote.fits and made(recipe, its, free, reach, **one.settings).fits
        assert all(getattr(recipe, name) != value for name, value in one.settings.items())
        # A step back on what the proposal sets last does not fit.
        least = dict(one.settings)
        if "max_tokens" in least:
            longer = [most for most in proposals._lengths_below(ROWS.lengths.longest) if most > least["max_tokens"]]
            assert not longer or not made(recipe, its, free, reach, **{**least, "max_tokens": longer[-1]}).fits
        elif "lora_rank" in least:
            assert not made(recipe, its, free, reach, **{**least, "lora_rank": 2 * least["lora_rank"]}).fits
        elif "micro_batch" in least:
            larger = [count for count in (recipe.batch_size, *proposals._halves(recipe.batch_size)) if count > least["micro_batch"]]
            assert not larger or not made(recipe, its, free, reach, **{**least, "micro_batch": larger[-1]}).fits
        assert one.words and (one.harm or one.settings.keys() <= {"micro_batch", "gradient_checkpointing"})
    harms = [bool(one.harm) for one in found]
    assert harms == sorted(harms)  # what leaves the result as it is comes first


def test_what_harms_nothing_is_enough_where_it_can_be(home):
    [fewer, *more] = proposals.propose(Recipe(**RIGID), SMOL, ROWS, 4.0, TWO_CORES)
    assert fewer.settings.keys() == {"micro_batch"} and fewer.settings["micro_batch"] in (1, 2, 4) and fewer.harm == ""
    assert fewer.words == f"Rows at once 8 → {fewer.settings['micro_batch']}"
    assert more[0].settings["gradient_checkpointing"] == "on"


def test_rows_that_a_cut_would_shorten_are_counted(home):
    found = proposals.propose(Recipe(quantisation="nf4", micro_batch=1, gradient_checkpointing="on", max_tokens=2048), LLAMA, ROWS, 8.05, CARD)
    [cut] = [one for one in found if "max_tokens" in one.settings]
    count = int(np.count_nonzero(ROWS.lengths.tokens > cut.settings["max_tokens"]))
    assert cut.harm == f"cuts {count} of 300 rows" and cut.words == f"Longest row 2,048 → {cut.settings['max_tokens']:,}"


def test_where_no_setting_helps_a_smaller_base_does(home):
    asked = []

    def smaller():
        asked.append(1)
        yield "a/Middle-7B", LLAMA
        yield "a/Small-135M", SMOL

    [one] = proposals.propose(Recipe(base_model="a/Large-8B"), LLAMA, ROWS, 2.0, TWO_CORES, smaller)
    assert one.settings["base_model"] == "a/Small-135M" and "Small-135M instead of Large-8B" in one.words and one.quote.fits
    assert proposals.propose(Recipe(), SMOL, ROWS, 8.0, TWO_CORES, smaller) == [] and len(asked) == 1
    assert proposals.propose(Recipe(), LLAMA, ROWS, 1.0, TWO_CORES) == []


def test_smaller_bases_are_of_the_same_family_and_smaller():
    known = ["HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-360M-Instruct", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "Qwen/Qwen3-0.6B", "HuggingFaceTB/SmolLM3-3B"]
    assert proposals.smaller_of("HuggingFaceTB/SmolLM2-1.7B-Instruct", known) == [known[1], known[0]]
    assert proposals.smaller_of("Qwen/Qwen3-14B", known) == ["Qwen/Qwen3-0.6B"]
    assert proposals.smaller_of("HuggingFaceTB/SmolLM2-135M-Instruct", known) == [] == proposals.smaller_of("a/b", known)


@pytest.mark.parametrize("settings", [{}, RIGID, {"micro_batch": 1, "gradient_checkpointing": "on", "max_tokens": 2048}])
def test_after_a_failure_clearly_less_is_proposed_with_the_same_optimiser_batch(home, settings):
    """The formula had said that it fits: what is proposed must need less than that, not just as much."""
    recipe = Recipe(**{"max_tokens": 2048, **settings})
    before = made(recipe, SMOL, 20.0, TWO_CORES)
    assert before.fits
    found = proposals.after_failure(recipe, SMOL, ROWS, before.plan, 20.0, TWO_CORES)
    assert found and all("batch_size" not in one.settings for one in found)
    for one in found:
        assert one.quote.needed_gib < before.needed_gib - 0.3 * before.memory["activations"]
    if settings == {}:
        assert found[0].settings.keys() <= {"micro_batch", "gradient_checkpointing"}


def test_shorter_rows_teach_less():
    cut = proposals.shorter(ROWS, 500)
    assert cut.lengths.longest == 500 and cut.count == ROWS.count and 0 < cut.learned < ROWS.learned
    assert plans.Lengths(cut.held.tokens).longest == 300
