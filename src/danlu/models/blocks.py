"""What text models are made of beside attention (`attention.py`): normalisation, the gate of the MLP, rotary positions.

Everything works on `[tokens, …]`, documents one behind the other, nothing padded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from danlu.core.errors import UserError
from danlu.models import kernels


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products of `x` are computed in: autocast's type where it is on, the tensor's own otherwise."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or as it is when it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def residual(x: Tensor) -> Tensor:
    """What layers add to: float32 under autocast, so that many small sums do not round away; else the weights' own type."""
    return wide(x) if torch.is_autocast_enabled(x.device.type) else x


def initialise(model: nn.Module, deviation: float) -> None:
    """As Hugging Face does: matrices and embeddings normal(0, `initializer_range`), biases 0, norms 1."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=deviation)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def count_labels(config: Mapping[str, Any], labels: Sequence[str] | None) -> int:
    """Labels of a classifier: those given, else those of the config (Hugging Face's default is two)."""
    if labels is not None:
        return len(labels)
    return len(config["id2label"]) if config.get("id2label") else int(config.get("num_labels") or 2)


def check_lengths(ids: Tensor, lengths: Sequence[int], context: int) -> None:
    """Documents that cannot be: empty, not adding up to `ids`, or longer than the model's context."""
    if not lengths or min(lengths) < 1 or sum(lengths) != len(ids):
        raise ValueError(f"{len(ids)} tokens cannot be documents of lengths {tuple(lengths)}")
    if max(lengths) > context:
        raise UserError(
            f"a document of {max(lengths):,} tokens is longer than the model's context of {context:,}",
            "cut or split long rows, or take a model with a longer context",
        )


counting: list[Callable[[Tensor], object]] = []
"""Shown what is kept inside `forgetting`: torch calls the innermost hooks on saved tensors alone."""


def again(y: Tensor, make: Callable[[], Tensor]) -> Tensor:
    """`y`, which `make` makes again with few operations: matrix products need not keep it for their backward pass (`forgetting`)."""
    if y.requires_grad:  # else its node keeps nothing of what `make` holds
        y.again = make, y._version  # type: ignore[attr-defined]
    return y


def forgetting(x: Tensor) -> AbstractContextManager[Any]:
    """Inside, `x` is not kept for the backward pass if it can be made `again`; there it is made once for all that ask for it.

    torch does not see whether what is kept inside (weights too) is changed in place before the backward pass.
    """
    make, version = getattr(x, "again", (None, 0))
    if make is None or version != x._version:  # changed since it was made
        return nullcontext()
    looks = x.data_ptr(), x.shape, x.stride()
    kept = asked = 0
    made: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor | None:
        nonlocal kept
        if (tensor.data_ptr(), tensor.shape, tensor.stride()) == looks:
            kept += 1
            return None
        for show in counting:
            show(tensor)
        return tensor

    def unpack(tensor: Tensor | None) -> Tensor:
        nonlocal asked
        if tensor is not None:
            return tensor
        asked += 1
        if not made:
            made.append(make())
        return made.pop() if asked % kept == 0 else made[0]  # the last one to ask takes it along

    return saved_tensors_hooks(pack, unpack)


# ---------------------------------------------------------------------------------------------------------------- norms


class _RMSNorm(torch.autograd.Function):
    """Written out because CPU autograd would otherwise keep four tensors of the input's size, in seven passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        inner = wide(x)
        scale = torch.linalg.vector_norm(inner, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return torch.mul(inner, scale).mul_(wide(weight)).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, scale = ctx.saved_tensors
        normal, inner = wide(x) * scale, wide(grad)
        dx = dw = None
        if ctx.needs_input_grad[1]:
            dw = (inner * normal).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            inner = inner * wide(weight)
            along = torch.linalg.vecdot(inner, normal).unsqueeze(-1).div_(-x.shape[-1])
            dx = inner.addcmul_(normal, along).mul_(scale).to(x.dtype)
        return dx, dw, None, None


rms_norm: Callable[..., Tensor] = _RMSNorm.apply
"""(x […, width], weight [width], epsilon, type of the result) -> […, width]"""


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang & Sennrich 2019): x / rms(x) * weight, computed in float32 at least.

    The result has the type the next matrix product computes in, so that autocast has nothing left to convert.
    """

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """[…, width] -> […, width]"""
        fused = kernels.rms_norm(x, self.weight, self.epsilon)
        if fused is not None:
            return fused.to(compute_dtype(x))
        kept, weight, epsilon, dtype = x.detach(), self.weight.detach(), self.epsilon, compute_dtype(x)
        return again(rms_norm(x, self.weight, epsilon, dtype), lambda: rms_norm(kept, weight, epsilon, dtype))


class LayerNorm(nn.LayerNorm):
    """Layer normalisation (Ba et al. 2016) in float32 at least, whatever types the input and the weights have."""

    def forward(self, x: Tensor) -> Tensor:
        """[…, width] -> […, width]"""
        return F.layer_norm(wide(x), self.normalized_shape, wide(self.weight), wide(self.bias), self.eps).to(
            compute_dtype(x)
        )


# ------------------------------------------------------------------------------------------------------------------ MLP


class _SwiGLU(torch.autograd.Function):
    """Keeps its two inputs and nothing else: silu(gate) is computed again on the way back."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020): [tokens, inner] twice -> [tokens, inner]"""
    kept = gate.detach(), up.detach()
    return again(_SwiGLU.apply(gate, up), lambda: F.silu(kept[0]).mul_(kept[1]))  # type: ignore[no-untyped-call]


# --------------------------------------------------------------------------------------------------------------- rotary


class _Rotate(torch.autograd.Function):
    """A rotation's gradient is the rotation back, so nothing of the input is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, -1), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    (a, b), (left, right) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(a, cos, out=left).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=right).addcmul_(a, sin, value=sign)
    return out


rotate: Callable[[Tensor, Tensor, Tensor], Tensor] = _Rotate.apply
"""x [tokens, heads, d] turned by its positions; cos and sin [tokens, 1, d/2] from `Rotary`, of the type of `x`."""


class Rotary:
    """Angles of rotary positions (Su et al. 2021), with the scalings `linear` (Chen et al. 2023) and `llama3` (Llama 3.1).

    Not a module: nothing here is a weight, so nothing must be filled when a model is built on the meta device.
    """

    KINDS = ("default", "linear", "llama3")

    def __init__(self, width: int, config: Mapping[str, Any]) -> None:
        """width: of a head. config: a Hugging Face `config.json`."""
        self.width = width
        self.parameters = self.parameters_of(config)
        self.tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @staticmethod
    def parameters_of(config: Mapping[str, Any]) -> dict[str, Any]:
        """Both spellings of a config: `rope_parameters` (transformers 5), or `rope_theta` beside `rope_scaling`."""
        found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        found.setdefault("rope_theta", config.get("rope_theta", 10000.0))
        found.setdefault("rope_type", found.pop("type", "default"))
        found.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
        return found

    def frequencies(self, device: torch.device) -> Tensor:
        """[d/2], radians a token"""
        p = self.parameters
        plain: Tensor = 1.0 / (p["rope_theta"] ** (torch.arange(0, self.width, 2, device=device).float() / self.width))
        if p["rope_type"] == "linear":
            plain = plain / p["factor"]
        if p["rope_type"] == "llama3":
            turns = p["original_max_position_embeddings"] * plain / (2 * math.pi)  # full turns within the old context
            share: Tensor = (turns - p["low_freq_factor"]) / (p["high_freq_factor"] - p["low_freq_factor"])
            share = share.clamp(0, 1)  # 0: slow, stretched by the factor; 1: quick, left alone
            plain = (1 - share) * plain / p["factor"] + share * plain
        return plain

    def __call__(self, positions: Tensor, longest: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """positions [tokens], all below `longest` -> cos and sin, each [tokens, 1, d/2], in the type `x` is computed in"""
        table = self.tables.get(positions.device)
        if table is None or len(table[0]) < longest:
            with torch.inference_mode(False), torch.no_grad():  # the table is kept, and may be trained with later
                size = 1 << max(longest - 1, 255).bit_length()
                steps = torch.arange(size, device=positions.device).float()
                angles = steps[:, None] * self.frequencies(positions.device)
                table = self.tables[positions.device] = angles.cos(), angles.sin()
        cos, sin = (part[positions].unsqueeze(1).to(compute_dtype(x)) for part in table)
        return cos, sin
