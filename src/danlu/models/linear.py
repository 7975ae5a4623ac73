"""Linear layers of one input, together with their adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from danlu.models.blocks import compute_dtype


@dataclass(frozen=True)
class Adapted:
    """A frozen layer with a LoRA adapter, y = W x + b + s B A x: what `_Adapted` needs of it."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor
    up: Tensor
    scale: float

    @classmethod
    def of(cls, layer: nn.Module) -> Adapted | None:
        """What `layer` is, if it is a layer of PEFT's that `project` computes itself; None leaves it to PEFT.

        PEFT computes what changes the formula (dropout of the adapter's input, DoRA, several adapters, an adapter switched off or merged)
        and what must be seen from outside (hooks on the layer or inside it, base weights that are trained too).
        """
        name, base = "default", getattr(layer, "base_layer", None)
        if type(base) is not nn.Linear:
            return None
        from peft.tuners.lora import Linear  # it made the layer, so this costs nothing

        if type(layer) is not Linear or layer.active_adapters != [name]:
            return None
        if layer.disable_adapters or layer.merged or layer.lora_variant:
            return None
        found: Any = layer
        down, up, dropout = found.lora_A[name], found.lora_B[name], found.lora_dropout[name]
        trained = [p for p in base.parameters() if p.requires_grad]
        drops = not isinstance(dropout, nn.Identity) and getattr(dropout, "p", 1.0) > 0 and layer.training
        biased = down.bias is not None or up.bias is not None
        if trained or drops or biased or any(map(watched, (layer, base, down, up, dropout))):
            return None
        return cls(base.weight, base.bias, down.weight, up.weight, float(found.scaling[name]))


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
    adapted = [each for each in map(Adapted.of, layers) if each is not None]
    converted = torch.is_autocast_enabled(x.device.type)  # without it PEFT converts in between, or refuses
    alike = converted or all(each.down.dtype == each.weight.dtype == x.dtype for each in adapted)
    if len(adapted) < len(layers) or x.ndim != 2 or not alike:
        return tuple(layer(x) for layer in layers)
    tensors = [tensor for each in adapted for tensor in (each.weight, each.bias, each.down, each.up)]
    result = _Adapted.apply(x, compute_dtype(x), [each.scale for each in adapted], *tensors)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, ...], result)
