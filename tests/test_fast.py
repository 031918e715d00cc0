"""The speed changes nothing: same losses, same gradients, every row once, and the same run again."""

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.nn import functional as F

from tests.small import small_base
from tests.small_run import losses, small_run
from tests.test_models import FAMILIES
from tuner import attention, batching, encode, fast, loss, models, prepack, train
from tuner.batching import LengthBatches
from tuner.encode import IGNORE
from tuner.recipe import Recipe

PLAIN = fast.Fast(blocks=False, rows=False, slices=False, lora=False)


def row(ids: list[int], learned_from: int) -> encode.Encoded:
    labels = [token if place >= learned_from else IGNORE for place, token in enumerate(ids)]
    return encode.Encoded(ids, labels, encode.BY_MARKS, "", [], [])


# Lengths that share a block and lengths that do not; one row is learned from its first token on.
ROWS = [row([20 + (7 * place + length) % 200 for place in range(length)], length // 2) for length in (9, 10, 30, 23, 64, 60)] + [row([31, 32, 33], 0)]
BATCH = batching.collate(ROWS)
LEARNED = sum(sum(label != IGNORE for label in its.labels[1:]) for its in ROWS)


@pytest.fixture
def short_parts(monkeypatch):
    """Slices, parts and kept probabilities at sizes that small rows reach."""
    monkeypatch.setattr(attention, "QUERIES", 16)
    monkeypatch.setattr(attention, "KEPT", 20)
    monkeypatch.setattr(loss, "STEP", 4)
    monkeypatch.setitem(loss.SLICE_BYTES, "cpu", 8000)


def tuned(base, precision="float32", quantisation="none", **config):
    """The base with LoRA that is not zero."""
    loaded = models.load_base(base, Recipe(quantisation=quantisation), {"precision": precision, "attention": "eager", "dequantised": False})
    for name, value in config.items():
        setattr(loaded.model.config, name, value)
    model = models.attach_lora(loaded.model, Recipe(), "test/small")
    random = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = (0.05 * torch.randn(parameter.shape, generator=random)).to(parameter.device)
    return model.train()


@pytest.fixture
def model(base):
    return tuned(base)


def losses_and_gradients(path: fast.Path, batch: dict = BATCH) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """With another weight for each loss, so that a gradient given to the wrong token shows."""
    path.model.zero_grad()
    found, owners = path.losses(batch)
    (found * torch.linspace(0.5, 1.5, len(found), device=found.device)).sum().backward()
    return found.detach(), owners, {name: p.grad.clone() for name, p in path.model.named_parameters() if p.requires_grad}


def assert_close(these: dict, those: dict, rtol: float = 1e-5) -> None:
    """Matrix by matrix, by the norm of the difference."""
    assert these.keys() == those.keys()
    for name in these:
        off = float((these[name] - those[name]).norm() / those[name].norm().clamp(min=1e-12))
        assert off < rtol, f"{name} is off by {off:.1e}"


@pytest.fixture(scope="module")
def family_bases(tmp_path_factory, one_thread):
    return {family: small_base(tmp_path_factory.mktemp("families") / family, family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_recognised_model_gives_its_own_forward_s_losses_and_gradients(family_bases, family, short_parts):
    model = tuned(family_bases[family])
    plain = losses_and_gradients(fast.Path(model, 0, PLAIN))
    path = fast.Path(model, 0)
    assert path.decoder is not None and path.slices, path.why_plain
    ours = losses_and_gradients(path)
    torch.testing.assert_close(ours[0], plain[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(ours[1], plain[1])
    assert_close(ours[2], plain[2])
    # and what a GPU runs: torch's own attention over the same blocks
    assert_close(losses_and_gradients(fast.Path(model, 0, fast.Fast(rows=False)))[2], plain[2])


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma3_text"])
@pytest.mark.parametrize("rows", [True, False])
def test_sliding_windows_hide_what_the_model_s_own_mask_hides(tmp_path, family, rows, short_parts):
    import json

    base = small_base(tmp_path / "base", family)
    config = json.loads((base / "config.json").read_text())
    config |= {"sliding_window": 11, "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}
    if family == "mistral":
        del config["layer_types"], config["use_sliding_window"]
    (base / "config.json").write_text(json.dumps(config))
    model = tuned(base)
    plain, path = fast.Path(model, 0, PLAIN), fast.Path(model, 0, fast.Fast(rows=rows))
    assert [layer.kind.window for layer in path.decoder.layers] == ([11, 11] if family == "mistral" else [11, 0])
    wanted, ours = losses_and_gradients(plain), losses_and_gradients(path)
    torch.testing.assert_close(ours[0], wanted[0], rtol=1e-5, atol=1e-5)
    assert_close(ours[2], wanted[2])


@pytest.mark.parametrize("switches", [replace(PLAIN, **{name: True}) for name in ("blocks", "slices", "lora")] + [fast.Fast(rows=False), fast.Fast(slices=False), fast.Fast(passes=False)], ids=str)
def test_each_switch_by_itself_changes_nothing(model, switches, short_parts):
    plain = losses_and_gradients(fast.Path(model, 0, PLAIN))
    ours = losses_and_gradients(fast.Path(model, 0, switches))
    torch.testing.assert_close(ours[0], plain[0], rtol=1e-5, atol=1e-5)
    assert_close(ours[2], plain[2])
    fast.restore_lora(model)


@pytest.mark.parametrize("quantisation", ["none", "nf4"])
def test_in_bf16_the_error_is_that_of_bf16(base, quantisation):
    """Against fp32 on the same weights, ours is no further off than transformers' and PEFT's own bf16."""
    in_bf16 = tuned(base, "bfloat16", quantisation)
    exact = tuned(base, "float32", quantisation)
    wanted = losses_and_gradients(fast.Path(exact, 0, PLAIN))
    plain = losses_and_gradients(fast.Path(in_bf16, 0, PLAIN))
    ours = losses_and_gradients(fast.Path(in_bf16, 0))
    off = lambda its: float((its[0] - wanted[0]).norm())  # noqa: E731
    off_gradient = lambda its: float(sum((its[2][name] - wanted[2][name]).norm() ** 2 for name in wanted[2]) ** 0.5)  # noqa: E731
    assert off(ours) < 1.3 * off(plain) and off_gradient(ours) < 1.3 * off_gradient(plain)
    assert ours[0].mean() == pytest.approx(float(wanted[0].mean()), rel=2e-3)


def test_losses_are_those_of_transformers(model):
    ids, mask, labels = batching.pad(BATCH, 0)
    ours, owners = fast.Path(model, 0).losses(BATCH)
    assert len(ours) == LEARNED
    assert Counter(owners.tolist()) == {index: sum(label != IGNORE for label in its.labels[1:]) for index, its in enumerate(ROWS)}
    torch.testing.assert_close(ours.mean(), model(input_ids=ids, attention_mask=mask, labels=labels).loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blocks", [True, False])
def test_a_row_s_neighbours_change_nothing(model, blocks, short_parts):
    path = fast.Path(model, 0, fast.Fast(blocks=blocks))
    together, owners, _ = losses_and_gradients(path)
    for index, its in enumerate(ROWS):
        alone, _ = path.losses(batching.collate([its]))
        torch.testing.assert_close(alone.detach(), together[owners == index], rtol=1e-5, atol=1e-5)


def test_a_base_without_its_adapter_is_the_base(model):
    path, plain = fast.Path(model, 0), fast.Path(model, 0, PLAIN)
    with torch.no_grad():
        with_it, _ = path.losses(BATCH)
        with model.disable_adapter():
            ours, _ = path.losses(BATCH)
            base, _ = plain.losses(BATCH)
    torch.testing.assert_close(ours, base, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, with_it, atol=0.1)


def test_checkpointing_keeps_less_and_gives_the_same_bits(model):
    def kept(path) -> int:
        sizes = {}
        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            path.losses(BATCH)
        return sum(sizes.values())

    whole, sparing = fast.Path(model, 0), fast.Path(model, 0, checkpointing=True)
    wanted, ours = losses_and_gradients(whole), losses_and_gradients(sparing)
    assert torch.equal(wanted[0], ours[0]) and all(torch.equal(wanted[2][name], ours[2][name]) for name in wanted[2])
    assert kept(sparing) < kept(whole) / 3


def test_what_is_not_recognised_takes_the_plain_path_and_says_why(base, tmp_path):
    model = tuned(base)
    assert fast.Path(model, 0).why_plain == ""
    model.config.final_logit_softcapping = 30.0
    assert not fast.can_split_head(model)
    path = fast.Path(model, 0)
    assert path.decoder is None and not path.slices and "head" in path.why_plain
    assert not path.plan["blocks"] and not path.plan["slices"]
    model.config.final_logit_softcapping = None
    with_dropout = models.attach_lora(models.load_base(base, Recipe(quantisation="none"), {"precision": "float32"}).model, Recipe(lora_dropout=0.1), "test/small")
    path = fast.Path(with_dropout, 0)
    assert path.decoder is None and "dropout" in path.why_plain
    model.get_base_model().config.hidden_act = "relu"
    assert "relu" in fast.Path(model, 0).why_plain


def test_the_plan_brings_the_same_path_back(model):
    first = fast.Path(model, 0, fast.Fast(slices=False))
    assert fast.Path(model, 0, first.plan).plan == first.plan and not first.plan["slices"]


def test_a_base_in_4_bits_takes_the_compiled_code_too(base):
    """Its own weights are bytes; what is computed with them is bf16."""
    path = fast.Path(tuned(base, "bfloat16", "nf4"), 0)
    assert path.decoder.layers[0].gate.is_4bit and path.plan["passes"] == (fast.native.load() is not None)


def test_a_plan_from_before_compiled_code_goes_on_without_it_and_a_lost_one_is_told(model, monkeypatch):
    old = {name: on for name, on in fast.Path(model, 0).plan.items() if name not in ("passes", "whole", "prepacked")}
    path = fast.Path(model, 0, old)
    assert not path.plan["passes"] and not path.lost
    monkeypatch.setattr(fast.native, "load", lambda: None)
    path = fast.Path(model, 0, {**old, "passes": True, "whole": True, "prepacked": True})
    assert path.lost == ["passes", "whole", "prepacked"] and path.passes is None
    assert not fast.Path(model, 0).lost  # a first start takes what there is


# The loss -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_cross_entropy_and_its_gradient_are_torch_s(count, monkeypatch):
    monkeypatch.setitem(loss.SLICE_BYTES, "cpu", 64 * 50 * 4)
    random = torch.Generator().manual_seed(count)
    head = torch.nn.Linear(16, 50, bias=False).requires_grad_(False)
    hidden = torch.randn(count, 16, generator=random, requires_grad=True)
    targets = torch.randint(0, 50, (count,), generator=random)
    weights = torch.rand(count, generator=random)
    from tuner.blocks import Linear

    ours = loss.cross_entropy(hidden, Linear(head), targets)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), hidden)
    wanted = F.cross_entropy(head(hidden), targets, reduction="none")
    (wanted_gradient,) = torch.autograd.grad((wanted * weights).sum(), hidden)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(loss.cross_entropy(hidden, Linear(head), targets), wanted, rtol=1e-5, atol=1e-6)


def test_slices_whose_losses_alone_are_wanted_have_one_place(monkeypatch):
    """Made anew for each, what the last ones left is no room for them, and a measurement held hundreds of MB more."""
    from tuner.blocks import Linear

    monkeypatch.setitem(loss.SLICE_BYTES, "cpu", 64 * 50 * 4)
    head, seen, plain = torch.nn.Linear(16, 50, bias=False), [], F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda logits, *more, **ways: seen.append((logits.data_ptr(), len(logits))) or plain(logits, *more, **ways))
    with torch.no_grad():
        loss.cross_entropy(torch.randn(150, 16), Linear(head), torch.zeros(150, dtype=torch.long))
    assert [count for _, count in seen] == [64, 64, 22] and len({place for place, _ in seen}) == 1


def test_a_hopeless_token_has_a_finite_loss_and_the_right_gradient():
    from tuner.blocks import Linear

    head = torch.nn.Linear(2, 3, bias=False).requires_grad_(False)
    head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    hidden = torch.tensor([[200.0, 0.0]], requires_grad=True)
    ours = loss.cross_entropy(hidden, Linear(head), torch.tensor([2]))
    ours.sum().backward()
    assert 80 < float(ours) < 90
    torch.testing.assert_close(hidden.grad, torch.tensor([[2.0, 1.0]]))


# Attention ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads, kv_heads, window", [(4, 4, 0), (6, 2, 0), (4, 1, 7), (6, 3, 40)])
@pytest.mark.parametrize("routine", ["rows", "sdpa"])
def test_attention_is_the_plain_formula_row_by_row(heads, kv_heads, window, routine, short_parts):
    random = torch.Generator().manual_seed(0)
    lengths = [5, 33, 35, 50]
    total, width = sum(lengths), 8
    q, k, v = (torch.randn(total + 3, n * width, generator=random, requires_grad=True) for n in (heads, kv_heads, kv_heads))
    kind = attention.Kind(heads, kv_heads, 0.3, window, routine)
    told = attention.attend(q, k, v, attention.Laid(lengths, total + 3, "cpu"), None, kind)
    weights = torch.randn(told.shape, generator=random)
    ours = torch.autograd.grad((told * weights).sum(), (q, k, v))
    wanted = torch.zeros_like(told)
    start = 0
    for length in lengths:
        for head, place in product(range(heads), range(length)):
            kv = head // (heads // kv_heads)
            first = max(0, place - window + 1) if window else 0
            seen = slice(start + first, start + place + 1)
            scores = k[seen, kv * width : (kv + 1) * width] @ q[start + place, head * width : (head + 1) * width] * 0.3
            wanted[start + place, head * width : (head + 1) * width] = scores.softmax(0) @ v[seen, kv * width : (kv + 1) * width]
        start += length
    torch.testing.assert_close(told, wanted, rtol=1e-5, atol=1e-5)
    assert not told[total:].any()  # what is in no row
    for its, theirs in zip(ours, torch.autograd.grad((wanted * weights).sum(), (q, k, v))):
        torch.testing.assert_close(its, theirs, rtol=1e-4, atol=1e-5)


def test_rows_of_like_length_share_a_block_and_others_do_not():
    blocks = attention.Laid([100, 104, 110, 200, 30, 31], 575, "cpu").blocks
    assert [(block.size, block.length, block.start, block.end) for block in blocks] == [(3, 112, 0, 314), (1, 208, 314, 514), (2, 32, 514, 575)]


# Batches ----------------------------------------------------------------------------------------------------------

LENGTHS = [10 + (n * 37) % 90 for n in range(103)]


def batches(batch_size=8, seed=0, epoch=0) -> LengthBatches:
    made = LengthBatches(LENGTHS, batch_size, seed)
    made.set_epoch(epoch)
    return made


@pytest.mark.parametrize("batch_size", [8, 200, 1])
def test_each_row_once_in_an_epoch_and_as_many_batches_as_said(batch_size):
    for epoch in range(3):
        its = batches(batch_size, epoch=epoch)
        found = list(its)
        assert sorted(index for batch in found for index in batch) == list(range(103))
        assert len(found) == len(its) and max(map(len, found)) <= batch_size


def test_the_order_follows_from_seed_and_epoch_alone():
    first = list(batches())
    torch.manual_seed(99)
    assert list(batches()) == first
    assert list(batches(epoch=1)) != first
    assert list(batches(seed=1)) != first


def test_a_short_batch_comes_last():
    for epoch in range(5):
        assert [len(its) for its in batches(epoch=epoch).batches()] == [8] * 12 + [7]


def test_rows_of_a_batch_are_of_like_length_and_batches_are_not_in_order_of_length():
    spread = [max(LENGTHS[i] for i in its) - min(LENGTHS[i] for i in its) for its in batches().batches()[:-1]]
    assert sum(spread) / len(spread) < 20  # of 89 between the shortest and the longest row
    means = [sum(LENGTHS[i] for i in its) / len(its) for its in batches().batches()]
    assert means != sorted(means)


def test_collated_rows_stand_end_to_end_and_padded_side_by_side():
    batch = batching.collate([row([1, 2, 3], 0), row([4, 5], 1)])
    assert batch["input_ids"].tolist() == [1, 2, 3, 4, 5] and batch["lengths"] == [3, 2]
    assert batch["labels"].tolist() == [IGNORE, 2, 3, IGNORE, 5]  # nothing of its row stands before a row's first token
    ids, mask, labels = batching.pad(batch, 9)
    assert ids.tolist() == [[1, 2, 3], [4, 5, 9]] and mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert labels.tolist() == [[IGNORE, 2, 3], [IGNORE, 5, IGNORE]]
    places, targets, rows = batching.learned(batch)
    assert places.tolist() == [0, 1, 3] and targets.tolist() == [2, 3, 5] and rows.tolist() == [0, 0, 1]


def test_micro_batches_are_few_equal_and_within_the_limit():
    batch = batching.collate([row(list(range(length)), 0) for length in (10, 10, 10, 10, 50, 10)])
    cut = lambda *limits: [its["lengths"] for its in batching.micro_batches(batch, *limits)]  # noqa: E731
    assert cut(1000) == [[10, 10, 10, 10, 50, 10]]
    assert cut(60) == [[10, 10, 10, 10], [50, 10]]
    assert cut(40) == [[10, 10, 10, 10], [50], [10]]  # a longer row is a part of its own
    assert cut(35) == [[10, 10], [10, 10], [50], [10]] or cut(35) == [[10, 10, 10], [10], [50], [10]]
    assert cut(1000, 2) == [[10, 10], [10, 10], [50, 10]]
    parts = batching.micro_batches(batch, 40)
    assert torch.equal(torch.cat([its["input_ids"] for its in parts]), batch["input_ids"])
    assert torch.equal(torch.cat([its["labels"] for its in parts]), batch["labels"])


def test_one_row_at_a_time_eight_times_over_is_eight_rows_at_once(base, home, quick):
    quick.setattr(models, "choose_precision", lambda device: "float32")
    found = {}
    for micro in (1, 8):
        run = small_run(base, batch_size=8, micro_batch=micro, epochs=3.0)
        train.train(run)
        assert run.read("plan")["micro_batch"] == micro and run.read("plan")["precision"] == "float32"
        found[micro] = losses(run)
    assert len(found[1]) == 6 and found[1] == pytest.approx(found[8], rel=1e-5)


# Prepacked weights -------------------------------------------------------------------------------------------------


@pytest.fixture
def needs_prepacking():
    if not prepack.is_possible(torch.empty(1, dtype=torch.bfloat16)):
        pytest.skip("this processor has no bf16 products")


def test_prepacked_weights_give_what_plain_ones_give(base, needs_prepacking):
    plain, model = tuned(base, "bfloat16"), tuned(base, "bfloat16")
    wanted = losses_and_gradients(fast.Path(plain, 0, fast.Fast(prepacked=False)))
    path = fast.Path(model, 0)
    assert path.plan["prepacked"] and all(its.base.weight.numel() == 0 for layer in path.decoder.layers for its in layer.linears())
    found = losses_and_gradients(path)
    assert torch.equal(found[0], wanted[0])
    assert_close(found[2], wanted[2], 1e-3)
    # The model's own forward goes on with them: answers, and PEFT's arithmetic.
    ids = torch.tensor([ROWS[0].ids])
    theirs, ours = plain.eval()(input_ids=ids), model.eval()(input_ids=ids)
    assert torch.equal(theirs.logits, ours.logits)
    for its in (plain, model):
        its.zero_grad()
        its(input_ids=ids).logits.float().square().mean().backward()
    grads = [{name: p.grad for name, p in its.named_parameters() if p.grad is not None} for its in (model, plain)]
    assert_close(*grads, 1e-3)
    # And a second path on the same model has them already.
    again = losses_and_gradients(fast.Path(model.train(), 0, path.plan))
    assert torch.equal(again[0], found[0]) and all(torch.equal(again[2][name], its) for name, its in found[2].items())


def test_prepacking_needs_room_and_dense_weights(base, needs_prepacking, monkeypatch):
    monkeypatch.setattr(fast.cost, "is_ample", lambda size, free: False)
    model = tuned(base, "bfloat16")
    path = fast.Path(model, 0)
    assert not path.plan["prepacked"] and not path.lost and path.decoder.layers[0].q.base.weight.numel()
    # A run that began with them goes on with them.
    assert fast.Path(model, 0, {**path.plan, "prepacked": True}).plan["prepacked"]
    monkeypatch.undo()
    path = fast.Path(tuned(base, "bfloat16", "nf4"), 0)
    assert path.decoder.layers[0].gate.is_4bit and not path.plan["prepacked"]
