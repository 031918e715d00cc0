"""The lean forward pass is the model's own: the same logits to the last bit where the products are the same."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.small import small_base, small_tokenizer
from tests.test_models import FAMILIES, rebuild
from tuner import answer, decode, encode, models
from tuner.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [[5, 20, 31, 44, 52], [7, 30], [9, 61, 33, 100, 101, 102, 103, 8]]
MORE = [12, 77, 41, 90, 15, 230]
# What the small bases do not have of themselves, by family: windows shorter than the row, layers of both kinds, other angles.
FURTHER = {
    "llama": {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }},
    "mistral": {"sliding_window": 6},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]},
    "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 24},
    "smollm3": {"no_rope_layers": [1, 0]},
}

packable = pytest.mark.skipif(not decode.can_pack(), reason="bitsandbytes packs 4-bit weights only on a CPU with avx512_bf16")


def load(base: Path, quantisation="none", precision="bfloat16"):
    """As the chat loads it: packed where it is 4-bit."""
    plan = {"precision": precision, "attention": "sdpa", "dequantised": False}
    model = models.load_base(base, Recipe(quantisation=quantisation), plan).model
    if quantisation == "nf4":
        decode.pack(model)
    return model


def adapter(base: Path, folder: Path, seed=1, **changes) -> Path:
    """LoRA whose B is not zero, saved."""
    from peft import LoraConfig, get_peft_model

    config = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **changes}
    model = get_peft_model(load(base, precision="float32"), LoraConfig(**config))
    model.peft_config["default"].base_model_name_or_path = "test/small"
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=random)
    models.save_adapter(model, folder)
    return folder


@torch.no_grad()
def own(model, prompt: list[int], more=MORE) -> torch.Tensor:
    """The logits after the prompt and after each further token, by the model's own forward: (1 + more, V)."""
    out = model(input_ids=torch.tensor([prompt]), use_cache=True)
    found = [out.logits[0, -1]]
    for token in more:
        out = model(input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
        found.append(out.logits[0, -1])
    return torch.stack(found)


def lean(decoder, prompt: list[int], more=MORE, name=None, chunk=1000) -> torch.Tensor:
    """The same by the decoder."""
    cache = decode.Cache()
    for start in range(0, len(prompt), chunk):
        last = decoder.forward([prompt[start : start + chunk]], [cache], [name])[0]
    return torch.stack([last, *(decoder.forward([[token]], [cache], [name])[0] for token in more)])


def assert_same(found: torch.Tensor, wanted: torch.Tensor, off: float = 0) -> None:
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=off, atol=off)


@cache
def has_bf16() -> bool:
    """A processor that emulates bf16 may round a number otherwise in a row by itself than among others; nothing trains in it there."""
    return models.choose_precision("cpu") == "bfloat16"


# The base ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantisation, precision", [
    ("none", "float32"), ("none", "bfloat16"), pytest.param("nf4", "bfloat16", marks=packable),
])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_model_s_to_the_last_bit(tmp_path, family, quantisation, precision):
    model = load(small_base(tmp_path / "base", family), quantisation, precision)
    wanted = [own(model, prompt) for prompt in PROMPTS]
    for moved in (False, True):  # the second time, layers of one input lie together and are one product
        decoder = decode.build(model, own=moved)
        for prompt, its in zip(PROMPTS, wanted):
            if precision == "float32":  # where the sum of a longer row may be taken in another order
                torch.testing.assert_close(lean(decoder, prompt), its, rtol=1e-5, atol=1e-5)
            else:
                assert_same(lean(decoder, prompt), its)
    for prompt, its in zip(PROMPTS, wanted):
        assert_same(own(model, prompt), its)  # nor has it changed the model's own


@pytest.mark.parametrize("family", FURTHER)
def test_windows_and_angles_are_the_model_s(tmp_path, family):
    base = small_base(tmp_path / "base", family)
    plain = own(load(base, precision="float32"), PROMPTS[2])
    rebuild(base, **FURTHER[family])
    model = load(base, precision="float32")
    wanted = own(model, PROMPTS[2])
    assert not torch.allclose(plain, wanted, atol=1e-2)  # the change is one
    decoder = decode.build(model, own=True)
    for chunk in (1000, 3, 7):  # a prompt in parts looks back at what came before
        torch.testing.assert_close(lean(decoder, PROMPTS[2], chunk=chunk), wanted, rtol=1e-4, atol=1e-5)


def test_a_long_answer_grows_its_cache(base, monkeypatch):
    monkeypatch.setattr(decode.Cache, "ROOM", 4)
    model = load(base, precision="float32")
    more = [10 + n % 200 for n in range(60)]
    torch.testing.assert_close(lean(decode.build(model), PROMPTS[0], more), own(model, PROMPTS[0], more), rtol=1e-4, atol=1e-5)


# Adapters ---------------------------------------------------------------------------------------------------------

SHAPES = {
    "all": {}, "some": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "uneven": {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"v_proj": 3, "up_proj": 5}}, "head": {"target_modules": ["lm_head", "o_proj"]},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("quantisation", ["none", pytest.param("nf4", marks=packable)])
def test_an_adapter_s_logits_are_peft_s_to_the_last_bit(base, tmp_path, shape, quantisation):
    model = load(base, quantisation)
    decoder = decode.build(model, own=True)
    alone = lean(decoder, PROMPTS[0])
    tuned = models.load_adapter(model, adapter(base, tmp_path / "adapter", **SHAPES[shape]), "test/small", "mine")
    assert decoder.take("mine")
    for prompt in PROMPTS:
        assert_same(lean(decoder, prompt, name="mine"), own(tuned, prompt), off=2**-7 if shape == "head" and not has_bf16() else 0)
    with tuned.disable_adapter():
        assert_same(own(tuned, PROMPTS[0]), alone)
    assert_same(lean(decoder, PROMPTS[0]), alone)
    assert not torch.allclose(lean(decoder, PROMPTS[0], name="mine"), alone, atol=0.1)


@pytest.mark.parametrize("quantisation", ["none", pytest.param("nf4", marks=packable)])
def test_answers_made_together_are_those_made_alone(base, tmp_path, quantisation):
    """Prompts and single tokens, base and two adapters, in one pass."""
    model = load(base, quantisation)
    decoder = decode.build(model, own=True)
    for name, seed in (("one", 1), ("two", 2)):
        model = models.load_adapter(model, adapter(base, tmp_path / name, seed), "test/small", name)
        assert decoder.take(name)
    names = [None, "one", "one", "two", None]
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[2], PROMPTS[0], PROMPTS[2]]
    wanted = [lean(decoder, prompt, name=name) for prompt, name in zip(prompts, names)]
    caches = [decode.Cache() for _ in prompts]
    found = [decoder.forward(prompts, caches, names)]
    found += [decoder.forward([[token]] * len(prompts), caches, names) for token in MORE]
    for place, its in enumerate(wanted):
        torch.testing.assert_close(torch.stack([step[place] for step in found]), its, rtol=0, atol=0.02 if quantisation == "none" else 0)


def test_many_answers_that_come_and_go_take_few_shapes(base, tmp_path, monkeypatch):
    """oneDNN keeps memory for each; the logits are those of the tokens that are there."""
    model = models.load_adapter(load(base, precision="float32"), adapter(base, tmp_path / "a"), "test/small")
    plain, name = decode.over(model)
    rounded, _ = decode.over(model)
    rounded.rounds_up = True
    seen: dict[str, set[int]] = {"plain": set(), "rounded": set()}
    call = decode._Product.__call__
    now = [""]
    monkeypatch.setattr(decode._Product, "__call__", lambda self, x, spans: seen[now[0]].add(x.shape[0]) or call(self, x, spans))
    for count in range(1, 90, 4):
        rows = [[7 + place] * (3 if place % 40 == 39 else 1) for place in range(count)]
        names = [None] * (count // 2) + [name] * (count - count // 2)
        found = {}
        for now[0], decoder in (("plain", plain), ("rounded", rounded)):
            found[now[0]] = decoder.forward(rows, [decode.Cache() for _ in rows], names)
        assert found["plain"].shape == found["rounded"].shape == (count, model.config.vocab_size)
        assert_same(found["rounded"], found["plain"], 1e-4)
    assert {its for its in seen["rounded"] if its > 8} == {16, 24, 32, 40, 48, 56, 64, 128} and {its for its in seen["rounded"] if its <= 8} == {1, 5}
    assert len(seen["plain"]) > 2 * len(seen["rounded"])


@packable
def test_an_adapter_comes_without_a_second_copy_of_the_base(base, tmp_path):
    """PEFT asks for the model's state, for which bitsandbytes would unpack every layer and round its scales anew."""
    model = load(base, "nf4")
    layers = [layer for _, _, layer in models.linears_4bit(model)]
    decoder = decode.build(model, own=True)
    stacks = {product.base.weight.untyped_storage().data_ptr() for product in decoder._products() if hasattr(product.base, "scales")}
    assert len(layers) == 14 and len(stacks) == 8  # two blocks; q, k, v are one product, gate and up another
    before = [(its.weight.data_ptr(), its.weight.quant_state.absmax.clone()) for its in layers]
    models.load_adapter(model, adapter(base, tmp_path / "adapter"), "test/small", "mine")
    own(model, PROMPTS[0])
    for layer, (place, scales) in zip(layers, before):
        assert layer.weight.data_ptr() == place and torch.equal(layer.weight.quant_state.absmax, scales)
        assert layer.weight.untyped_storage().data_ptr() in stacks


# What is not known ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family, changes", [
    ("llama", {"final_logit_softcapping": 30.0}), ("gemma3_text", {"use_bidirectional_attention": True}),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}),
])
def test_a_model_with_anything_odd_keeps_its_own_forward(tmp_path, family, changes):
    base = small_base(tmp_path / "base", family)
    assert decode.build(load(base)) is not None
    rebuild(base, **changes)
    model = load(base)
    assert decode.build(model) is None and decode.over(model) == (None, None)


def test_a_model_whose_logits_are_not_ours_keeps_its_own_forward(base):
    """Known by its name, but computing something else: found out before anybody is answered."""
    model = load(base)
    norm = type(model.model.norm)

    class Louder(norm):
        def forward(self, hidden_states):
            return super().forward(hidden_states) * 1.5

    for layer in model.model.layers:
        layer.input_layernorm.__class__ = Louder
    assert decode.build(model, own=True) is None


def test_another_architecture_keeps_its_own_forward():
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=2, vocab_size=64)
    assert decode.build(AutoModelForCausalLM.from_config(config)) is None


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"modules_to_save": ["embed_tokens"]}, {"target_modules": ["q_proj", "embed_tokens"]}])
def test_an_adapter_with_more_than_lora_of_known_layers_keeps_peft_s_forward(base, changes):
    from peft import LoraConfig, get_peft_model

    model = load(base)
    decoder = decode.build(model)
    tuned = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **{"target_modules": "all-linear", **changes}))
    assert not decoder.take("default")
    assert decode.over(tuned) == (None, None)


def test_a_model_in_training_is_read_as_it_stands(base):
    """Adapter on, adapter off, and its weights of this moment; nothing of it is moved or changed."""
    model = models.attach_lora(load(base, precision="float32"), Recipe(lora_rank=4), "test/small")
    kept = {name: (its.data_ptr(), its.detach().clone()) for name, its in model.named_parameters()}
    for value in (0.05, 0.1):
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.fill_(value)
                kept[name] = parameter.data_ptr(), parameter.detach().clone()
        model.eval()
        wanted = own(model, PROMPTS[0])
        model.train()
        decoder, name = decode.over(model)
        torch.testing.assert_close(lean(decoder, PROMPTS[0], name=name), wanted, rtol=1e-4, atol=1e-4)
        with model.disable_adapter():
            decoder, name = decode.over(model)
            assert name is None
            assert not torch.allclose(lean(decoder, PROMPTS[0]), wanted, atol=0.01)
    for name, its in model.named_parameters():
        assert its.data_ptr() == kept[name][0] and torch.equal(its, kept[name][1])


# Text -------------------------------------------------------------------------------------------------------------


class Saying:
    """A decoder that says these ids, whatever it is asked."""

    def __init__(self, ids: list[int], vocabulary: int):
        self.ids, self.vocabulary = iter(ids), vocabulary

    def forward(self, rows, caches, adapters):
        return torch.nn.functional.one_hot(torch.tensor([next(self.ids)]), self.vocabulary).float()


@pytest.mark.parametrize("family", ["chatml", "qwen", "gemma", "mistral"])
@pytest.mark.parametrize("text", [
    "Grüße, 猫 😀! What  is\n\n the capital?", " The cat sat.", "  two spaces, then é", "def add(a, b):\n    return a + b\n", "a", "\u2581 <b> 🏳️‍🌈",
])
def test_pieces_are_the_text_of_the_whole(tmp_path, family, text):
    """Whatever the tokenizer does with spaces, bytes and control tokens at the edges of a piece."""
    tokenizer = small_tokenizer(tmp_path, family=family)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [*ids, tokenizer.eos_token_id, *ids]  # a control token that ends nothing here, and is not shown
    making = answer.Answer(None, tokenizer, [1], set(), answer.Sampling(len(ids)), Saying(ids, len(tokenizer)))
    pieces = []
    while (piece := making.step()) is not None:
        pieces.append(piece)
    assert "".join(pieces) == making.text == tokenizer.decode(ids, skip_special_tokens=True)
    assert "\ufffd" not in making.text and len(pieces) == len(ids)


def test_an_answer_decodes_a_few_tokens_for_each_piece_not_all_of_them(base):
    tokenizer, model = encode.load_tokenizer(str(base)), load(base)
    longest = 0

    class Counting:
        def decode(self, ids, **more):
            nonlocal longest
            longest = max(longest, len(ids))
            return tokenizer.decode(ids, **more)

    making = answer.Answer(model, Counting(), PROMPTS[0], set(), answer.Sampling(200, 3.0), decode.build(model))
    while making.step() is not None:
        pass
    assert len(making.ids) == 200 and longest < 20


def test_a_long_prompt_is_read_in_parts(base, monkeypatch):
    monkeypatch.setattr(decode, "PREFILL_TOKENS", 3)
    tokenizer, model = encode.load_tokenizer(str(base)), load(base, precision="float32")
    making = answer.Answer(model, tokenizer, PROMPTS[2], set(), answer.Sampling(4), decode.build(model))
    assert [making.reads, making.step(), making.step()] == [True, "", ""] and making.ids == []
    making.step()
    assert not making.reads and len(making.ids) == 1 and making.ids[0] == int(own(model, PROMPTS[2], [])[0].argmax())


# The benchmark ----------------------------------------------------------------------------------------------------


def test_the_benchmark_s_table_has_every_way(base, tmp_path, capsys):
    from tests.bench import chat as bench

    found = bench.bench(base, "test/small", tmp_path, tokens=4, rounds=1, prompts=4, worker=False)
    table = capsys.readouterr().out
    assert len(found) == 7
    for line in (
        "generate, fp32 ", "generate, bf16 ", "generate with the adapter, the same ", "llama.cpp, .* not installed",
        "decode, ours base / fastest generate: ", "decode, ours tuned / fastest generate", "equal to generate's, base +4 of 4",
        "equal to generate's, tuned +4 of 4", "equal to generate's, base in bf16 +1 of 1",
    ):
        assert re.search(line, table), line
