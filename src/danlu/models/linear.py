"""Linear layers of one input, together with their adapters: LoRA as it is read, and as it is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from danlu.models.blocks import compute_dtype, forgetting
from danlu.models.dropout import dropout as drop


class LoRA(nn.Module):
    """A frozen linear layer with a trained product of two small matrices beside it (Hu et al. 2021): W x + b + (alpha / rank) B A x.

    Weights are called as in PEFT's files: base_layer.weight, lora_A.weight [rank, inputs], lora_B.weight [outputs, rank]; B is zero at first.
    Raises ValueError, TypeError or ZeroDivisionError for numbers that are none.
    """

    def __init__(self, base_layer: nn.Linear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        """dropout: share of the adapter's input that is set to zero in training."""
        super().__init__()
        self.rank, self.alpha, self.dropout, self.enabled = rank, alpha, dropout, True
        self.scale = alpha / rank
        if not (0 <= dropout < 1 and math.isfinite(self.scale)):
            raise ValueError(f"LoRA of rank {rank}, alpha {alpha} and dropout {dropout}")
        weight = base_layer.weight
        kind = {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}
        self.base_layer = base_layer
        # lora_A as PEFT draws it: Kaiming's, uniform
        self.lora_A = nn.Linear(base_layer.in_features, rank, bias=False, **kind)
        self.lora_B = nn.Linear(rank, base_layer.out_features, bias=False, **kind)
        nn.init.zeros_(self.lora_B.weight)

    @property
    def weight(self) -> Tensor:
        """The frozen one: an architecture may ask its layers for its type."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen one."""
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """[…, inputs] -> […, outputs]"""
        y = self.base_layer(x)
        if not self.enabled:
            return cast(Tensor, y)
        x = x.to(self.lora_A.weight.dtype)
        if self.training and self.dropout:
            x = drop(x, self.dropout)
        return cast(Tensor, y + (self.scale * self.lora_B(self.lora_A(x))).to(y.dtype))

    def added(self) -> Tensor:
        """(alpha / rank) B A, float32 or wider [outputs, inputs]: what the adapter adds to W."""
        return self.scale * (self.lora_B.weight @ self.lora_A.weight)

    @property
    def plain(self) -> bool:
        """Whether `project` may compute it: nothing changes the formula, and nothing is to be seen from outside."""
        inside = (self, self.base_layer, self.lora_A, self.lora_B)
        kinds = [type(each) for each in inside] == [LoRA, nn.Linear, nn.Linear, nn.Linear]
        drops = self.training and self.dropout > 0
        trained = any(parameter.requires_grad for parameter in self.base_layer.parameters())
        return kinds and self.enabled and not drops and not trained and not any(map(watched, inside))


def watched(module: nn.Module) -> bool:
    """Whether something looks at what goes through this module."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or nn.modules.module._has_any_global_hook()


class _Adapted(torch.autograd.Function):
    """Frozen products with their adapters added in place, and one gradient of their common input.

    Left to autograd, each layer makes five more passes over memory: B A x, its scaling, its sum with W x, and on the way back the scaled
    gradient and the sums of all gradients of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, scales: Sequence[float], *tensors: Any) -> Any:
        """tensors: weight, bias (or None), down and up of each layer."""
        x = x.to(dtype)
        weights, biases, downs, ups = (tensors[kind::4] for kind in range(4))
        narrow = x @ torch.cat([down.to(dtype) for down in downs]).T
        outs, columns = [], narrow.split([len(down) for down in downs], 1)
        for weight, bias, up, scale, part in zip(weights, biases, ups, scales, columns, strict=True):
            out = nn.functional.linear(x, weight.to(dtype), None if bias is None else bias.to(dtype))
            outs.append(out.addmm_(part, up.to(dtype).T, alpha=scale))
        ctx.scales, ctx.dtype = scales, dtype
        ctx.save_for_backward(x, narrow, *weights, *downs, *ups)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dtype, scales, count = ctx.dtype, ctx.scales, len(ctx.scales)
        x, narrow, *rest = ctx.saved_tensors
        weights, downs, ups = rest[:count], rest[count : 2 * count], rest[2 * count :]
        dnarrow = torch.empty_like(narrow)
        dups = []
        ranks = [len(down) for down in downs]
        each = zip(grads, ups, scales, narrow.split(ranks, 1), dnarrow.split(ranks, 1), strict=True)
        for grad, up, scale, part, dpart in each:
            torch.mm(grad, up.to(dtype), out=dpart).mul_(scale)
            dups.append((grad.T @ part).mul_(scale).to(up.dtype))
        ddowns = (dnarrow.T @ x).split(ranks)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dnarrow @ torch.cat([down.to(dtype) for down in downs])
            for grad, weight in zip(grads, weights, strict=True):
                dx.addmm_(grad, weight.to(dtype))
        slopes = [(None, None, ddown.to(down.dtype), dup) for ddown, down, dup in zip(ddowns, downs, dups, strict=True)]
        return dx, None, None, *(one for four in slopes for one in four)


def project(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """What each of these layers makes of x [tokens, width]; that of `layer(x)` for each, to rounding, and quicker where all have adapters.

    Under LoRA the input's gradient, the adapters' products and their sums with the frozen ones are made in place (`_Adapted`).
    """
    adapted = [layer for layer in layers if isinstance(layer, LoRA) and layer.plain]
    weights = [
        (each.base_layer.weight, each.base_layer.bias, each.lora_A.weight, each.lora_B.weight) for each in adapted
    ]
    converted = torch.is_autocast_enabled(x.device.type)
    alike = converted or all(down.dtype == weight.dtype == x.dtype for weight, _, down, _ in weights)
    with forgetting(x):
        if len(adapted) < len(layers) or x.ndim != 2 or not alike:
            return tuple(layer(x) for layer in layers)
        tensors = [tensor for four in weights for tensor in four]
        result = _Adapted.apply(x, compute_dtype(x), [each.scale for each in adapted], *tensors)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, ...], result)
