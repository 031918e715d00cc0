"""The compiled code against plain formulas in fp32, in both types, and what happens where it cannot be had."""

import math

import pytest
import torch
from torch.nn import functional as F

from tuner import attention, native

# What rounding once to the type may cost, as the norm of the difference over the norm.
OFF = {torch.float32: 2e-6, torch.bfloat16: 3e-3}
TYPES = pytest.mark.parametrize("dtype", list(OFF), ids=["fp32", "bf16"])


@pytest.fixture(scope="module")
def passes(one_thread):
    found = native.load()
    if found is None:
        pytest.skip("no C compiler here")
    return found


def random(*shape, dtype=torch.float32, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(ours: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, times: float = 1.0) -> None:
    off = float((ours.float() - wanted.float()).norm() / wanted.float().norm().clamp(min=1e-12))
    assert off < OFF[dtype] * times, f"off by {off:.1e}"


@TYPES
@pytest.mark.parametrize("twice", [True, False])
def test_norm_and_its_gradient(passes, dtype, twice):
    x, d_y, rest = random(37, 200, dtype=dtype), random(37, 200, dtype=dtype, seed=1), random(37, 200, dtype=dtype, seed=2)
    scale = 1 + 0.1 * random(200, seed=3)
    wide = x.float().requires_grad_()
    wanted = wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * scale
    (d_x,) = torch.autograd.grad(wanted, wide, d_y.float())
    ours, inverse = passes.norm(x, scale, 1e-5, twice)
    assert_near(ours, wanted.detach(), dtype)
    assert torch.equal(passes.norm(x, scale, 1e-5, twice, inverse)[0], ours)
    assert_near(passes.norm_back(d_y.clone(), x, scale, inverse, None), d_x, dtype)
    assert_near(passes.norm_back(d_y.clone(), x, scale, inverse, rest), d_x + rest.float(), dtype)


@TYPES
@pytest.mark.parametrize("act, plain", [("silu", F.silu), ("gelu_pytorch_tanh", lambda x: F.gelu(x, approximate="tanh"))])
def test_gates_and_their_gradients(passes, dtype, act, plain):
    gate, up, d = (4 * random(33, 100, dtype=dtype, seed=seed) for seed in range(3))
    gate[0, :4] = torch.tensor([-200.0, 200.0, 0.0, -30.0])
    wide_gate, wide_up = gate.float().requires_grad_(), up.float().requires_grad_()
    wanted = plain(wide_gate) * wide_up
    d_gate, d_up = torch.autograd.grad(wanted, (wide_gate, wide_up), d.float())
    assert_near(passes.gate(gate, up, act), wanted.detach(), dtype)
    ours = passes.gate_back(d.clone(), gate.clone(), up.clone(), act)
    for its, theirs in zip(ours, (d_gate, d_up, wanted.detach())):
        assert_near(its, theirs, dtype)


@TYPES
def test_cross_entropy_and_its_gradient_with_a_hopeless_token_and_one_without_target(passes, dtype):
    logits, targets = 5 * random(9, 1000, dtype=dtype), torch.arange(9) * 100
    logits[0, 0] = -300  # its loss is over 300, where the probability itself is 0
    targets[8] = -1
    wide = logits[:8].float().requires_grad_()
    wanted = F.cross_entropy(wide, targets[:8], reduction="none")
    (d,) = torch.autograd.grad(wanted.sum(), wide)
    losses = passes.cross_entropy(logits, targets)
    torch.testing.assert_close(losses[:8], wanted.detach(), rtol=2e-6, atol=2e-6)
    assert losses[0] > 300 and losses[8] == 0 and not logits[8].any()
    assert_near(logits[:8], d, dtype)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 17])
@pytest.mark.parametrize("outputs, width", [(7, 3), (33, 570), (64, 576), (5, 1537)])
def test_a_few_tokens_by_a_matrix(passes, rows, outputs, width):
    x, w = random(rows, width), random(outputs, width, seed=1)
    ours, wanted = passes.few_rows(x, w), (x.double() @ w.double().T).float()
    assert_near(ours, wanted, torch.float32)
    # Each row is the same to the last bit whatever stands beside it, and rows may be part of something wider.
    assert all(torch.equal(passes.few_rows(x[row : row + 1], w)[0], ours[row]) for row in range(rows))
    assert torch.equal(passes.few_rows(torch.cat([x, x], 1)[:, :width], w), ours)


def test_what_is_not_a_number_stays_so(passes):
    for dtype in OFF:
        bad = random(4, 64, dtype=dtype)
        bad[1, 3] = math.nan
        assert passes.norm(bad, torch.ones(64), 1e-5, True)[0][1].isnan().all()
        assert passes.gate(bad, bad, "silu")[1, 3].isnan()
        assert passes.cross_entropy(bad.clone(), torch.zeros(4, dtype=torch.long))[1].isnan()
    if passes.has_pairs:
        q = random(20, 64, dtype=torch.bfloat16)
        q[7, 3] = math.nan
        told, _ = passes.attention(q, random(20, 64, dtype=torch.bfloat16), random(20, 64, dtype=torch.bfloat16), torch.tensor([0, 20]), 1, 1, 0.1, 0)
        assert told[7].isnan().all() and not told[6].isnan().any()


@pytest.mark.parametrize("rows, width, rank", [(1, 16, 16), (37, 576, 16), (200, 64, 48), (64, 192, 32)])
def test_thin_products(passes, rows, width, rank):
    dtype = torch.bfloat16
    x, w, thin = random(rows, width, dtype=dtype), random(width, rank, dtype=dtype, seed=1), random(rows, 2 * rank, dtype=dtype, seed=2)
    if not passes.takes_thin(x, rank):
        pytest.skip("this processor has no bf16 dot products")
    out = torch.full((rows, 2 * rank), 7.0, dtype=dtype)
    passes.thin_rows(x, w, out[:, rank:])
    assert_near(out[:, rank:], x.float() @ w.float(), dtype)
    assert (out[:, :rank] == 7).all()  # its neighbour's
    turned = torch.empty(rows, rank, dtype=dtype)
    passes.thin_rows(x, w.t().contiguous(), turned, turned=True)
    assert torch.equal(turned, out[:, rank:])
    wide = random(rows, width, dtype=dtype, seed=3)
    wanted = wide.float() + thin[:, rank:].float() @ w.t().float()
    for its, is_turned in ((w, True), (w.t().contiguous(), False)):
        added = wide.clone()
        passes.thin_add(added, thin[:, rank:], its, turned=is_turned)
        assert_near(added, wanted, dtype)
    wanted = 0.5 * x.float().t() @ thin[:, rank:].float()
    assert_near(passes.thin_sum(x, thin[:, rank:], 0.5), wanted, torch.float32)
    assert_near(passes.thin_sum(x, thin[:, rank:], 0.5, by_rank=True), wanted.t(), torch.float32)
    assert not passes.takes_thin(x, rank + 8) and not passes.takes_thin(x.float(), rank)


# Attention ----------------------------------------------------------------------------------------------------------

LENGTHS = [1, 7, 16, 33, 100, 257]


def by_formula(q, k, v, weights, turns, kind):
    """Each row by itself through torch in fp32: the result, and the gradients of its weighted sum."""
    q, k, v = (its.detach().float().requires_grad_() for its in (q, k, v))
    told, start = [], 0
    for length in LENGTHS:
        here = slice(start, start + length)
        asked, keys, values = (its[here].view(length, heads, -1).transpose(0, 1) for its, heads in ((q, kind.heads), (k, kind.kv_heads), (v, kind.kv_heads)))
        if turns is not None:
            asked, keys = (attention._turn(its, turns[0][:length].float(), turns[1][:length].float()) for its in (asked, keys))
        keys, values = (its.repeat_interleave(kind.heads // kind.kv_heads, 0) for its in (keys, values))
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        seen = seen.triu(1 - kind.window) if kind.window else seen
        told.append(F.scaled_dot_product_attention(asked, keys, values, seen, scale=kind.scaling).transpose(0, 1).reshape(length, -1))
        start += length
    told = torch.cat([*told, q.new_zeros(len(q) - start, q.shape[1])])
    return told.detach(), *torch.autograd.grad((told * weights).sum(), (q, k, v))


@pytest.mark.parametrize("whole, dtype", [(True, torch.bfloat16), (False, torch.bfloat16), (False, torch.float32)])
@pytest.mark.parametrize("heads, kv_heads, width, window", [(6, 2, 64, 0), (3, 3, 128, 0), (4, 1, 64, 20)])
@pytest.mark.parametrize("turned", [True, False])
def test_attention_and_its_gradients(passes, whole, dtype, heads, kv_heads, width, window, turned):
    if whole and not passes.attends(dtype, width):
        pytest.skip("this processor has no bf16 dot products")
    tokens = sum(LENGTHS) + 50
    q, k, v = (random(tokens, n * width, dtype=dtype, seed=seed).requires_grad_() for seed, n in enumerate((heads, kv_heads, kv_heads)))
    angles = random(272, width // 2).repeat(1, 2)
    turns = (angles.cos().to(dtype), angles.sin().to(dtype)) if turned else None
    kind = attention.Kind(heads, kv_heads, width**-0.5, window, "rows", passes, whole)
    told = attention.attend(q, k, v, attention.Laid(LENGTHS, tokens, "cpu"), turns, kind)
    weights = random(tokens, heads * width, seed=3)
    ours = (told, *torch.autograd.grad((told.float() * weights).sum(), (q, k, v)))
    assert not told[sum(LENGTHS) :].any()
    for its, theirs in zip(ours, by_formula(q, k, v, weights, turns, kind)):
        assert_near(its.detach(), theirs, dtype, times=2)


def test_threads_change_no_bit(passes):
    width = 64
    q, k, v, d = (random(sum(LENGTHS), n * width, dtype=torch.bfloat16, seed=n) for n in (6, 2, 3, 6))
    k, v = k[:, : 2 * width].contiguous(), v[:, : 2 * width].contiguous()
    starts = torch.tensor([0, *LENGTHS]).cumsum(0)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            its = [passes.norm(q, torch.ones(6 * width), 1e-5, True)[0], passes.gate(q, q, "silu"), passes.softmax(q.float()[:, :300].contiguous(), 1, 299, 0, 0.1)]
            if passes.has_pairs:
                its.append(passes.thin_sum(q, k[:, :16]))
                told, lse = passes.attention(q, k, v, starts, 6, 2, 0.1, 0)
                its += [told, lse, *passes.attention_back(q, k, v, d, lse, starts, 6, 2, 0.1, 0)]
        finally:
            torch.set_num_threads(1)
        found.append(its)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


# Where it cannot be had ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", ["/nowhere/cc", "false"])
def test_without_a_compiler_or_with_a_broken_one_there_is_none(home, monkeypatch, compiler):
    monkeypatch.setenv("CC", compiler)
    assert native.load.__wrapped__() is None
    assert list((home / "native").iterdir()) == []  # nothing half made


def test_it_is_compiled_once(home, passes, monkeypatch):
    assert native.load.__wrapped__() is not None
    monkeypatch.setenv("CC", "/nowhere/cc")
    assert native.load.__wrapped__() is not None
    assert len(list((home / "native").iterdir())) == 1


def test_it_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("TUNER_NATIVE", "0")
    assert native.load.__wrapped__() is None
