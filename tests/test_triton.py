"""The passes of a card against plain formulas in fp32: through Triton's interpreter where there is no card."""

import math
import os
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests import test_native
from tests.test_native import TYPES, random

CARD = torch.cuda.is_available()
DEVICE = "cuda" if CARD else "cpu"
if not CARD:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported
# `make` puts it beside the packages: among them every process of the tests would import it.
APART = str(Path(sys.prefix) / "triton")
sys.path.append(APART)
triton_passes = pytest.importorskip("tuner.triton_passes", reason="Triton is not installed", exc_type=ImportError)
sys.path.remove(APART)
os.environ.pop("TRITON_INTERPRET", None)
# The interpreter cuts to bf16 where a card rounds.
ROUNDED = 1.0 if CARD else 2.5
needs_card = pytest.mark.skipif(not CARD, reason="no card here")


@pytest.fixture(scope="module")
def passes():
    with pytest.MonkeyPatch.context() as patch:
        if not CARD:
            patch.setenv("TRITON_INTERPRET", "1")  # read again when a kernel first runs
        yield triton_passes.TritonPasses()


def assert_near(ours: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, times: float = 1.0) -> None:
    test_native.assert_near(ours, wanted, dtype, times * (ROUNDED if dtype == torch.bfloat16 else 1.0))


def on(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Copies where the kernels run."""
    return [its.clone().to(DEVICE) for its in tensors]


@TYPES
@pytest.mark.parametrize("twice", [True, False])
def test_norm_and_its_gradient(passes, dtype, twice):
    x, d_y, rest = random(37, 200, dtype=dtype), random(37, 200, dtype=dtype, seed=1), random(37, 200, dtype=dtype, seed=2)
    scale = 1 + 0.1 * random(200, seed=3)
    wide = x.float().requires_grad_()
    wanted = wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * scale
    (d_x,) = torch.autograd.grad(wanted, wide, d_y.float())
    its, by = on(x, scale)
    ours, inverse = passes.norm(its, by, 1e-5, twice)
    assert_near(ours.cpu(), wanted.detach(), dtype)
    assert torch.equal(passes.norm(its, by, 1e-5, twice, inverse)[0], ours)
    assert_near(passes.norm_back(*on(d_y), its, by, inverse, None).cpu(), d_x, dtype)
    assert_near(passes.norm_back(*on(d_y), its, by, inverse, *on(rest)).cpu(), d_x + rest.float(), dtype)


@TYPES
@pytest.mark.parametrize("act, plain", [("silu", F.silu), ("gelu_pytorch_tanh", lambda x: F.gelu(x, approximate="tanh"))])
def test_gates_and_their_gradients(passes, dtype, act, plain):
    gate, up, d = (4 * random(33, 100, dtype=dtype, seed=seed) for seed in range(3))
    gate[0, :4] = torch.tensor([-200.0, 200.0, 0.0, -30.0])
    wide_gate, wide_up = gate.float().requires_grad_(), up.float().requires_grad_()
    wanted = plain(wide_gate) * wide_up
    d_gate, d_up = torch.autograd.grad(wanted, (wide_gate, wide_up), d.float())
    assert_near(passes.gate(*on(gate, up), act).cpu(), wanted.detach(), dtype)
    for its, theirs in zip(passes.gate_back(*on(d, gate, up), act), (d_gate, d_up, wanted.detach())):
        assert_near(its.cpu(), theirs, dtype)


@TYPES
def test_cross_entropy_and_its_gradient_with_a_hopeless_token_and_one_without_target(passes, dtype):
    logits, targets = 5 * random(9, 9000, dtype=dtype), torch.arange(9) * 1000  # wider than a kernel takes at once
    logits[0, 0] = -300  # its loss is over 300, where the probability itself is 0
    targets[8] = -1
    wide = logits[:8].float().requires_grad_()
    wanted = F.cross_entropy(wide, targets[:8], reduction="none")
    (d,) = torch.autograd.grad(wanted.sum(), wide)
    ours, where = on(logits, targets.unsqueeze(1))
    losses = passes.cross_entropy(ours, where).cpu()
    torch.testing.assert_close(losses[:8], wanted.detach(), rtol=4e-6, atol=4e-6)
    assert losses[0] > 300 and losses[8] == 0 and not ours[8].any()
    assert_near(ours[:8].cpu(), d, dtype)


@TYPES
@pytest.mark.parametrize("heads, width", [(3, 64), (4, 80)])
def test_turning_and_turning_back(passes, dtype, heads, width):
    x = random(20, heads * width, dtype=dtype)
    places = torch.tensor([*range(12), *range(6), -1, -1])
    angle = random(12, width // 2, seed=1).repeat(1, 2)
    cos, sin = angle.cos(), angle.sin()
    split = x.float().view(20, heads, width)
    known = places.clamp(min=0)
    rolled = torch.cat([-split[..., width // 2 :], split[..., : width // 2]], -1)
    wanted = split * cos[known].unsqueeze(1) + rolled * sin[known].unsqueeze(1)
    wanted[places < 0] = 0
    its, where, *turns = on(x, places, cos, sin)
    turned = passes.turn(its, where, tuple(turns), heads)
    assert_near(turned.cpu(), wanted.view(20, -1), dtype)
    back = passes.turn(turned, where, tuple(turns), heads, back=True).cpu()
    assert_near(back[:18], x[:18].float(), dtype, times=2)
    assert not back[18:].any()


def test_what_is_not_a_number_stays_so(passes):
    bad = random(4, 64)
    bad[1, 3] = math.nan
    its, ones, none = on(bad, torch.ones(64), torch.zeros(4, dtype=torch.long))
    assert passes.norm(its, ones, 1e-5, True)[0][1].isnan().all()
    assert passes.gate(its, its, "silu")[1, 3].isnan()
    assert passes.cross_entropy(its, none)[1].isnan()


# On a card alone ----------------------------------------------------------------------------------------------------


@needs_card
def test_the_passes_are_there_on_a_card():
    assert triton_passes.load() is not None


@needs_card
@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("heads, kv_heads, width, window", [(6, 2, 64, 0), (3, 3, 128, 0), (4, 1, 64, 20), (8, 2, 256, 0)])
def test_flash_attention_is_each_row_s_own(passes, heads, kv_heads, width, window, turned):
    from tests.test_native import LENGTHS, by_formula
    from tuner import attention

    dtype, tokens = torch.bfloat16, sum(LENGTHS) + 2  # two that are in no row
    q, k, v = (random(tokens, count * width, dtype=dtype, seed=seed) for seed, count in enumerate((heads, kv_heads, kv_heads)))
    weights = random(tokens, heads * width, seed=5)
    weights[-2:] = 0
    angle = random(272, width // 2, seed=6).repeat(1, 2)
    turns = (angle.cos().to(dtype), angle.sin().to(dtype)) if turned else None
    kind = attention.Kind(heads, kv_heads, width**-0.5, window, "flash", passes, True)
    leaves = [its.cuda().requires_grad_() for its in (q, k, v)]
    assert attention.takes_flash(leaves[0], width)
    told = attention.attend(*leaves, attention.Laid(LENGTHS, tokens, "cuda"), turns and tuple(its.cuda() for its in turns), kind)
    gradients = torch.autograd.grad((told.float() * weights.cuda()).sum(), leaves)
    real = sum(LENGTHS)
    for ours, wanted in zip((told, *gradients), by_formula(q, k, v, weights, turns, kind)):
        assert_near(ours[:real].cpu(), wanted[:real], dtype, times=4)


@needs_card
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_model_on_the_card_learns_as_the_plain_path_does(tmp_path, monkeypatch, precision):
    from tests.small import small_base
    from tests.test_fast import BATCH, losses_and_gradients, tuned
    from tuner import fast

    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    model = tuned(small_base(tmp_path / "base"), precision)
    batch = {name: its.cuda() if isinstance(its, torch.Tensor) else its for name, its in BATCH.items()}
    plain = losses_and_gradients(fast.Path(model, 0, fast.Fast(blocks=False)), batch)
    path = fast.Path(model, 0)
    assert path.plan["passes"] and path.plan["whole"]
    for ours, wanted in zip(losses_and_gradients(path, batch)[2].values(), plain[2].values()):
        assert_near(ours.cpu(), wanted.cpu(), torch.bfloat16, times=12)
