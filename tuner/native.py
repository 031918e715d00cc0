"""Attention, the passes between products and what an answer is made of in C, compiled once for this machine; None where there is no compiler."""

import ctypes
import hashlib
import importlib.util
import os
import platform
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Protocol

import torch

from tuner.home import private_dir, tuner_home

SOURCES = [Path(__file__).with_name(name) for name in ("native.c", "native_attention.c", "native_rows.c", "native_thin.c")]
HEADER = Path(__file__).with_name("native_bf16.h")
_OPTIONS = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC"]
_COMPILE_S = 60
# As in native.c.
ACTS = {"silu": 0, "gelu_pytorch_tanh": 1}
_SUFFIX = {torch.bfloat16: "_bf16", torch.float32: "_f32"}
# The arguments of each function: p a pointer, n a long, i an int, f a float.
_SIGNATURES = {
    "norm": "ppppnnfiii", "norm_back": "ppppppnni", "gate": "pppnii", "gate_back": "pppnii", "spread": "pppppnnnnii",
    "gather": "pppppnnnni", "turn": "pppppnnnii", "sum_heads": "pppppnnnni", "softmax": "pnnnnnfi", "softmax_back": "ppnnnnnfi", "cross_entropy": "pppnni",
}
# In bf16 alone, and only where the processor multiplies it in pairs.
_PAIRS = {"attention": "ppppppnnnnfni", "attention_back": "pppppppppnnnnfni", "thin_rows": "pppnnnnii", "thin_add": "pppnnnnii", "thin_sum": "pppnnnnfii"}
# In fp32 alone.
_FP32 = {"few_rows": "pppnnni"}
# Dims of a head that native_attention.c takes: whole products of four registers. Ranks and widths that native_thin.c takes.
_HEAD_STEP, _RANK_STEP = 64, 16
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_long, "i": ctypes.c_int, "f": ctypes.c_float}


@cache
def load() -> "Native | None":
    """The compiled passes; compiled first where this machine has not done so."""
    if os.environ.get("TUNER_NATIVE") == "0":
        return None
    try:
        path = _library()
        return Native(ctypes.CDLL(str(path)))
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None


def _library() -> Path:
    """The shared library for this source on this processor.

    Raises:
        OSError, subprocess.SubprocessError: no compiler, or one that fails.
    """
    known = [*(source.read_text("utf-8") for source in (*SOURCES, HEADER)), _processor(), torch.__version__, *_OPTIONS]
    key = hashlib.sha256("\n".join(known).encode()).hexdigest()[:24]
    folder = private_dir(tuner_home() / "native")
    path = folder / f"{key}.so"
    if not path.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            made = Path(beside) / "native.so"
            _compile(made)
            os.replace(made, path)
    return path


def _compile(to: Path) -> None:
    compiler = os.environ.get("CC", "cc")
    run = lambda *arguments: subprocess.run([compiler, *arguments], check=True, capture_output=True, timeout=_COMPILE_S)  # noqa: E731
    # gcc prefers half a register of AVX-512 for some processors; other machines and compilers do not know the option.
    wide = ["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []
    compiled = [str(to.with_name(f"{source.stem}.o")) for source in SOURCES]
    for source, its in zip(SOURCES, compiled):
        run(*_OPTIONS, *wide, "-c", str(source), "-o", its)
    # torch's own OpenMP by its path: a second pool of threads would fight the first for the cores.
    run("-shared", *compiled, str(_openmp()), "-lm", "-o", str(to))


def _openmp() -> Path:
    """The OpenMP library that torch brings.

    Raises:
        OSError: it brings none.
    """
    package = Path(importlib.util.find_spec("torch").origin).parent
    for place in (package / "lib", package.parent / "torch.libs"):
        for found in sorted(place.glob("libgomp*.so*")):
            return found
    raise OSError("torch brings no libgomp")


def _processor() -> str:
    """What the compiled code depends on: a home on a volume may meet another processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines if line.split(":")[0].strip() in ("vendor_id", "cpu family", "model", "flags", "Features"))


def fits(tensor: torch.Tensor) -> bool:
    """Whether the passes take what is computed where and as this is: on the CPU, in bf16 or fp32."""
    return tensor.device.type == "cpu" and tensor.dtype in _SUFFIX


class Passes(Protocol):
    """What `blocks` and `loss` want of compiled passes, here for a CPU and in `triton_passes` for a card; see `Native`."""

    def takes_thin(self, x: torch.Tensor, rank: int) -> bool: ...
    def norm(self, x: torch.Tensor, scale: torch.Tensor, eps: float, twice: bool, inverse: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]: ...
    def norm_back(self, d_y: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, inverse: torch.Tensor, rest: torch.Tensor | None) -> torch.Tensor: ...
    def gate(self, gate: torch.Tensor, up: torch.Tensor, act: str) -> torch.Tensor: ...
    def gate_back(self, d_middle: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, act: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]: ...
    def turn(self, x: torch.Tensor, places: torch.Tensor, turns: tuple, heads: int, back: bool = False) -> torch.Tensor: ...
    def cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor: ...


class Native:
    """Each function of native.c on tensors: contiguous, all of one type unless it says otherwise."""

    def __init__(self, library: ctypes.CDLL):
        self._functions = {}
        for name, signature in _SIGNATURES.items():
            for suffix in _SUFFIX.values():
                function = getattr(library, name + suffix)
                function.restype, function.argtypes = None, [_TYPES[its] for its in signature]
                self._functions[name + suffix] = function
        for name, signature in {**_PAIRS, **_FP32}.items():
            function = getattr(library, name)
            function.restype, function.argtypes = None, [_TYPES[its] for its in signature]
            self._functions[name] = function
        self.has_pairs = bool(library.pairs_here())

    def _call(self, name: str, dtype: torch.dtype | None, *arguments) -> None:
        self._functions[name + (_SUFFIX[dtype] if dtype else "")](
            *(its.data_ptr() if isinstance(its, torch.Tensor) else its for its in arguments), torch.get_num_threads()
        )

    def takes_thin(self, x: torch.Tensor, rank: int) -> bool:
        """Whether `thin_rows`, `thin_add` and `thin_sum` are here for rows like these and this rank."""
        return self.has_pairs and x.dtype == torch.bfloat16 and x.shape[1] % _RANK_STEP == 0 and rank % _RANK_STEP == 0

    def thin_rows(self, x: torch.Tensor, w: torch.Tensor, out: torch.Tensor, turned: bool = False) -> None:
        """out = x w, or x w^T if `turned`: (N, D) by (D, R), or (R, D), into (N, R), whose rows may stand apart."""
        self._call("thin_rows", None, x, w, out, *x.shape, out.shape[1], out.stride(0), turned)

    def thin_add(self, out: torch.Tensor, thin: torch.Tensor, w: torch.Tensor, turned: bool = False) -> None:
        """out += thin w, or thin w^T if `turned`: (N, R), whose rows may stand apart, by (R, D), or (D, R), into (N, D)."""
        self._call("thin_add", None, out, thin, w, *out.shape, thin.shape[1], thin.stride(0), turned)

    def thin_sum(self, x: torch.Tensor, thin: torch.Tensor, factor: float = 1.0, by_rank: bool = False) -> torch.Tensor:
        """x^T thin times the factor: (N, D) by (N, R), whose rows may stand apart, -> (D, R) fp32, or (R, D) if `by_rank`."""
        rank = thin.shape[1]
        out = x.new_empty((rank, x.shape[1]) if by_rank else (x.shape[1], rank), dtype=torch.float32)
        self._call("thin_sum", None, x, thin, out, *x.shape, rank, thin.stride(0), factor, by_rank)
        return out

    def few_rows(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """x w^T of a few tokens: (N, D) by (K, D), fp32, -> (N, K). Each row is the same whatever stands beside it."""
        x = x.contiguous()
        out = x.new_empty(len(x), len(w))
        self._call("few_rows", None, x, w, out, len(x), *w.shape)
        return out

    def attends(self, dtype: torch.dtype, width: int) -> bool:
        """Whether `attention` is here for heads of this width."""
        return self.has_pairs and dtype == torch.bfloat16 and width % _HEAD_STEP == 0

    def norm(self, x: torch.Tensor, scale: torch.Tensor, eps: float, twice: bool, inverse: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of (N, D) over their rms, times the fp32 scale; and each row's 1 / rms, (N, 1) fp32, made unless given.

        Args:
            twice: round to the type before the scale too, as Llama's norm does.
        """
        x, known = x.contiguous(), inverse is not None
        out = torch.empty_like(x)
        inverse = inverse if known else x.new_empty(len(x), 1, dtype=torch.float32)
        self._call("norm", x.dtype, x, scale, out, inverse, *x.shape, eps, twice, known)
        return out, inverse

    def norm_back(self, d_y: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, inverse: torch.Tensor, rest: torch.Tensor | None) -> torch.Tensor:
        """The gradient of x in the place of d_y, plus `rest`."""
        d_y, x, rest = d_y.contiguous(), x.contiguous(), None if rest is None else rest.contiguous()
        self._call("norm_back", x.dtype, d_y, x, scale, inverse, rest, d_y, *x.shape)
        return d_y

    def gate(self, gate: torch.Tensor, up: torch.Tensor, act: str) -> torch.Tensor:
        """act(gate) * up."""
        out = torch.empty_like(gate)
        self._call("gate", gate.dtype, gate, up, out, gate.numel(), ACTS[act])
        return out

    def gate_back(self, d_middle: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, act: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """d_gate in the place of d_middle, d_up in that of up, act(gate) * up once more in that of gate."""
        self._call("gate_back", gate.dtype, d_middle, gate, up, gate.numel(), ACTS[act])
        return d_middle, up, gate

    def spread(self, flat: torch.Tensor, rows: torch.Tensor, size: int, heads: int, turns: tuple | None, empty: bool = False) -> torch.Tensor:
        """(N, heads * D), rows end to end -> (size, heads, T, D), turned by fp32 cos and sin (T, D).

        Args:
            rows: (size * T,) each place's token; padding repeats a row's last.
            empty: padding is 0 instead.
        """
        flat, length, width = flat.contiguous(), len(rows) // size, flat.shape[1] // heads
        out = flat.new_empty(size, heads, length, width)
        self._call("spread", flat.dtype, flat, rows, *(turns or (None, None)), out, size, heads, length, width, empty)
        return out

    def gather(self, block: torch.Tensor, places: torch.Tensor, turns: tuple | None, out: torch.Tensor) -> None:
        """(B, heads, T, D) -> the rows of out, (n, heads * D), turned back."""
        _, heads, length, width = block.shape
        self._call("gather", block.dtype, block, places, *(turns or (None, None)), out, len(places), heads, length, width)

    def turn(self, x: torch.Tensor, places: torch.Tensor, turns: tuple, heads: int, back: bool = False) -> torch.Tensor:
        """(N, heads * D) turned by the fp32 cos and sin, (T, D), of each token's place, or back; 0 where that is below 0."""
        x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        self._call("turn", x.dtype, x, places, *turns, out, len(x), heads, x.shape[1] // heads, back)
        return out

    def attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, heads: int, kv_heads: int, scaling: float, window: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Causal attention of each row with itself: (N, heads * D), and each query's log-sum-exp, (N, heads) fp32.

        Args:
            q: (N, heads * D), turned; k, v: (N, kv_heads * D).
            starts: (rows + 1,) where each row begins; what stands after the last is 0.
        """
        out, lse = torch.empty_like(q), q.new_empty(len(q), heads, dtype=torch.float32)
        out[int(starts[-1]) :] = 0
        self._call("attention", None, q, k, v, out, lse, starts, len(starts) - 1, heads, kv_heads, q.shape[1] // heads, scaling, window)
        return out, lse

    def attention_back(self, q, k, v, d_out: torch.Tensor, lse: torch.Tensor, starts: torch.Tensor, heads: int, kv_heads: int, scaling: float, window: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The gradients: of q like q; of k and v head by head, (N, heads * D) fp32, for `sum_heads`."""
        d_q, d_k, d_v = torch.empty_like(q), *(q.new_empty(q.shape, dtype=torch.float32) for _ in range(2))
        d_q[int(starts[-1]) :] = 0
        self._call(
            "attention_back", None, q, k, v, d_out.contiguous(), lse, d_q, d_k, d_v, starts, len(starts) - 1, heads, kv_heads,
            q.shape[1] // heads, scaling, window,
        )
        return d_q, d_k, d_v

    def sum_heads(self, parts: torch.Tensor, places: torch.Tensor, turns: tuple | None, like: torch.Tensor, heads: int, kv_heads: int) -> torch.Tensor:
        """(N, heads * D) fp32 -> like's (N, kv_heads * D): summed over the heads that share a key, turned back."""
        out = torch.empty_like(like)
        self._call("sum_heads", like.dtype, parts, places, *(turns or (None, None)), out, len(like), heads, kv_heads, like.shape[1] // kv_heads)
        return out

    def softmax(self, scores: torch.Tensor, queries: int, before: int, window: int, scaling: float) -> torch.Tensor:
        """Causal softmax of scores * scaling in place; (..., keys), rows in runs of `queries`, the first at key `before`."""
        keys = scores.shape[-1]
        self._call("softmax", scores.dtype, scores, scores.numel() // keys, queries, keys, before, window, scaling)
        return scores

    def softmax_back(self, p: torch.Tensor, d_p: torch.Tensor, queries: int, before: int, window: int, scaling: float) -> torch.Tensor:
        """The gradient of the unscaled scores, in the place of d_p."""
        keys = p.shape[-1]
        self._call("softmax_back", p.dtype, p, d_p, p.numel() // keys, queries, keys, before, window, scaling)
        return d_p

    def cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """-log softmax(logits)[target], (N,) fp32; the logits, (N, V), become their gradient. No loss below 0."""
        losses = logits.new_empty(len(logits), dtype=torch.float32)
        self._call("cross_entropy", logits.dtype, logits, targets, losses, *logits.shape)
        return losses
