"""The speed changes nothing: same losses, same gradients, every row once, and the same run again."""

from collections import Counter

import pytest
import torch

from tests.small_run import losses, small_run
from tuner import encode, fast, models, train
from tuner.encode import IGNORE
from tuner.recipe import Recipe


def row(ids: list[int], learned_from: int) -> encode.Encoded:
    labels = [token if place >= learned_from else IGNORE for place, token in enumerate(ids)]
    return encode.Encoded(ids, labels, encode.BY_MARKS, "", [], [])


ROWS = [row(list(range(20, 20 + length)), length // 2) for length in (9, 30, 17, 23)]


@pytest.fixture
def model(base):
    """In fp32, with LoRA that is not zero, in the run's own forward."""
    loaded = models.load_base(base, Recipe(quantisation="none"), {"precision": "float32"})
    model = models.attach_lora(loaded.model, Recipe(), "test/small")
    random = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=random)
    fast.speed_up_lora(model)
    return model.train()


def losses_and_gradients(model, rows, split_head) -> tuple[torch.Tensor, torch.Tensor, dict]:
    model.zero_grad()
    found, owners = fast.token_losses(model, **fast.collate(rows, 0), split_head=split_head)
    found.sum().backward()
    return found.detach(), owners, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_close(these: dict, those: dict) -> None:
    for name in these:
        torch.testing.assert_close(these[name], those[name], rtol=1e-5, atol=1e-5, msg=lambda text: f"{name}: {text}")


def test_the_head_run_apart_gives_the_same_losses_and_gradients(model, monkeypatch):
    assert fast.can_split_head(model)
    monkeypatch.setattr(fast, "LOSS_CHUNK", 7)  # several slices, the last one short
    plain, owners, plain_gradients = losses_and_gradients(model, ROWS, split_head=False)
    split, split_owners, split_gradients = losses_and_gradients(model, ROWS, split_head=True)
    assert len(plain) == sum(its.learned for its in ROWS) and torch.equal(owners, split_owners)
    assert Counter(owners.tolist()) == {index: its.learned for index, its in enumerate(ROWS)}
    torch.testing.assert_close(split, plain, rtol=1e-6, atol=1e-6)
    assert_close(split_gradients, plain_gradients)


def test_losses_are_those_of_transformers(model):
    batch = fast.collate(ROWS, 0)
    ours, _ = fast.token_losses(model, **batch, split_head=True)
    torch.testing.assert_close(ours.mean(), model(**batch).loss, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("split_head", [True, False])
def test_padding_changes_nothing(model, split_head):
    together, owners, gradients = losses_and_gradients(model, ROWS, split_head)
    alone = {}
    for index, its in enumerate(ROWS):
        found, _, its_gradients = losses_and_gradients(model, [its], split_head)
        torch.testing.assert_close(found, together[owners == index], rtol=1e-5, atol=1e-5)
        alone = {name: alone.get(name, 0) + gradient for name, gradient in its_gradients.items()}
    assert_close(alone, gradients)


def test_soft_capped_logits_keep_the_model_s_own_path(model):
    assert fast.can_split_head(model)
    model.config.final_logit_softcapping = 30.0
    assert not fast.can_split_head(model)


def test_our_lora_forward_is_peft_s(model):
    """In fp32, where nothing is rounded on the way; and again after it is undone."""
    batch = fast.collate(ROWS, 0)
    model.eval()
    with torch.no_grad():
        ours = model(**batch).logits
        with model.disable_adapter():
            base = model(**batch).logits
        fast.restore_lora(model)
        torch.testing.assert_close(model(**batch).logits, ours, rtol=1e-5, atol=1e-5)
        with model.disable_adapter():
            assert torch.equal(model(**batch).logits, base)
    assert not torch.allclose(ours, base, atol=0.1)


# Batches ----------------------------------------------------------------------------------------------------------

LENGTHS = [10 + (n * 37) % 90 for n in range(103)]


def batches(batch_size=8, micro_batch=8, seed=0, epoch=0) -> fast.LengthBatches:
    made = fast.LengthBatches(LENGTHS, batch_size, micro_batch, seed)
    made.set_epoch(epoch)
    return made


@pytest.mark.parametrize("batch_size, micro_batch", [(8, 8), (8, 1), (8, 3), (200, 64), (1, 1)])
def test_each_row_once_in_an_epoch_and_as_many_batches_as_said(batch_size, micro_batch):
    for epoch in range(3):
        its = batches(batch_size, micro_batch, epoch=epoch)
        found = list(its)
        assert sorted(index for micro in found for index in micro) == list(range(103))
        assert len(found) == len(its) and max(map(len, found)) <= micro_batch
        assert len(its.batches()) == its.steps_per_epoch


def test_the_order_follows_from_seed_and_epoch_alone():
    first = list(batches())
    torch.manual_seed(99)
    assert list(batches()) == first
    assert list(batches(epoch=1)) != first
    assert list(batches(seed=1)) != first


def test_a_short_batch_comes_last():
    for epoch in range(5):
        assert [len(its) for its in batches(epoch=epoch).batches()] == [8] * 12 + [7]


def test_micro_batches_of_one_optimiser_batch_follow_each_other():
    its = batches(micro_batch=3, epoch=2)
    assert its.accumulate == 3
    wanted = [batch[start : start + 3] for batch in its.batches() for start in range(0, len(batch), 3)]
    assert list(its) == wanted
    assert [index for micro in list(its)[:3] for index in micro] == its.batches()[0]


def test_rows_of_a_batch_are_of_like_length_and_batches_are_not_in_order_of_length():
    spread = [max(LENGTHS[i] for i in its) - min(LENGTHS[i] for i in its) for its in batches().batches()[:-1]]
    assert sum(spread) / len(spread) < 20  # of 89 between the shortest and the longest row
    means = [sum(LENGTHS[i] for i in its) / len(its) for its in batches().batches()]
    assert means != sorted(means)


def test_one_row_at_a_time_eight_times_over_is_eight_rows_at_once(base, home, quick):
    quick.setattr(models, "choose_precision", lambda device: "float32")
    found = {}
    for micro in (1, 8):
        run = small_run(base, batch_size=8, micro_batch=micro, epochs=3.0)
        train.train(run)
        assert run.read("plan")["micro_batch"] == micro and run.read("plan")["precision"] == "float32"
        found[micro] = losses(run)
    assert len(found[1]) == 6 and found[1] == pytest.approx(found[8], rel=1e-5)
