"""Frozen layers with adapters are computed as PEFT computes them: by the readable layer, and by the fast way where it may be taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from danlu.models.blocks import RMSNorm, counting, swiglu
from danlu.models.dropout import dropout
from danlu.models.linear import LoRA, project


WIDTHS = {"query": 40, "key": 16, "value": 16}


def plain() -> nn.ModuleDict:
    """Three layers of one input, with biases and without."""
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(24, width, bias=name == "query") for name, width in WIDTHS.items()})


def adapted(dropout: float = 0.0, key: tuple[int, float] = (4, 12.0)) -> nn.ModuleDict:
    """Those with adapters that have moved. key: rank and alpha of that layer's."""
    layers = plain()
    for name, layer in layers.items():
        layer.requires_grad_(False)
        rank, alpha = key if name == "key" else (4, 12.0)
        layers[name] = LoRA(layer, rank, alpha, dropout)
    for name, parameter in layers.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return layers


def peered(layers: nn.ModuleDict, **options: Any) -> nn.ModuleDict:
    """The same weights in PEFT's layers."""
    theirs = plain()
    inject_adapter_in_model(
        LoraConfig(r=4, lora_alpha=12, target_modules=list(WIDTHS), lora_dropout=0.0, **options), theirs
    )
    for name, parameter in theirs.named_parameters():
        parameter.data = layers.get_parameter(name.replace(".default.", ".")).detach().clone()
        parameter.requires_grad_("lora_" in name)
    return theirs


def gradients(layers: nn.ModuleDict, compute: Callable[..., Any], autocast: bool = False) -> dict[str, torch.Tensor]:
    """Outputs, and gradients of the input and of every trained weight."""
    torch.manual_seed(1)
    x = torch.randn(50, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outs = compute(x, *layers.values())
    slopes = [torch.randn(out.shape).to(out.dtype) for out in outs]
    for parameter in layers.parameters():
        parameter.grad = None
    torch.autograd.backward(outs, slopes)
    trained = {name.replace(".default.", "."): p.grad for name, p in layers.named_parameters() if p.grad is not None}
    return {**dict(zip("qkv", outs, strict=True)), "x": x.grad, **trained}


def one_by_one(x: torch.Tensor, *layers: nn.Module) -> tuple[torch.Tensor, ...]:
    return tuple(layer(x) for layer in layers)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("key", [(4, 12.0), (7, 3.0)])
def test_outputs_and_gradients_are_those_of_peft(key, autocast):
    layers = adapted(key=key)
    theirs = peered(layers, **({"rank_pattern": {"key": 7}, "alpha_pattern": {"key": 3}} if key[0] == 7 else {}))
    assert all(layer.plain for layer in layers.values())
    expected = gradients(theirs, one_by_one, autocast)
    for compute in (project, one_by_one):  # the fast one and the readable one
        ours = gradients(layers, compute, autocast)
        assert ours.keys() == expected.keys() and len(ours) == 4 + 6
        for name, value in expected.items():
            assert ours[name].dtype == value.dtype and ours[name].shape == value.shape
            away = float((ours[name] - value).detach().float().norm() / value.detach().float().norm())
            assert away < (1e-2 if autocast else 1e-6), name


def test_a_gradient_can_be_taken_twice():
    """Private training takes one of each example out of one forward pass."""
    layers = adapted()
    x = torch.randn(6, 24)
    out = project(x, *layers.values())[0].sum(1)
    for part in out[:3].unbind():
        part.backward(retain_graph=True)
    together = layers["query"].lora_A.weight.grad.clone()
    layers.zero_grad()
    one_by_one(x[:3], *layers.values())[0].sum().backward()
    assert torch.allclose(together, layers["query"].lora_A.weight.grad, atol=1e-5)


class Twice(nn.Linear):
    """Not what its weights say."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "hook": lambda layer: layer.lora_A.register_forward_hook(lambda *_: None),
    "backward hook": lambda layer: layer.base_layer.register_full_backward_hook(lambda *_: None),
    "hook before": lambda layer: layer.register_forward_pre_hook(lambda *_: None),
    "off": lambda layer: setattr(layer, "enabled", False),
    "base trained": lambda layer: layer.base_layer.weight.requires_grad_(True),
    "dropout": lambda layer: setattr(layer, "dropout", 0.1),
    "another layer": lambda layer: setattr(layer.base_layer, "__class__", Twice),
}


@pytest.mark.parametrize("change", [*CHANGES, "no adapter"])
def test_what_would_be_another_formula_is_left_to_the_readable_layer(change):
    layers = adapted()
    if change == "no adapter":
        layers["key"] = nn.Linear(24, 16)
    else:
        CHANGES[change](layers["key"])
        assert not layers["key"].plain and layers["query"].plain
    x, found = torch.randn(5, 24), []
    for compute in (project, one_by_one):
        torch.manual_seed(2)
        found.append(compute(x, *layers.values()))
    assert all(torch.equal(ours, other) for ours, other in zip(*found, strict=True))


def test_dropout_reaches_the_adapter_alone_and_is_over_when_training_is():
    layer = adapted(dropout=0.5)["key"]
    x = torch.randn(5, 24)
    frozen, small = layer.base_layer(x), layer.scale * layer.lora_B(layer.lora_A(x))
    torch.manual_seed(2)
    first, second = layer(x), layer(x)
    torch.manual_seed(2)
    kept = dropout(x, 0.5)
    assert torch.equal(first, frozen + layer.scale * layer.lora_B(layer.lora_A(kept)))
    assert not torch.equal(first, second)
    assert not layer.plain and layer.eval().plain
    assert torch.equal(layer(x), frozen + small)


def test_other_types_and_shapes_are_for_the_readable_layer():
    layers = adapted()
    x = torch.randn(3, 5, 24)
    assert torch.equal(project(x, layers["query"])[0], layers["query"](x))
    half = adapted()
    half["query"].base_layer.bfloat16()
    x = torch.randn(5, 24, dtype=torch.bfloat16)
    assert torch.equal(project(x, half["query"])[0], half["query"](x))
    with pytest.raises(RuntimeError, match="same dtype"):
        project(torch.randn(5, 24, dtype=torch.float64), layers["query"])


@pytest.mark.parametrize("method", ["LoraConfig", "LoHaConfig", "IA3Config"])
def test_adapters_of_peft_are_left_to_peft(method):
    import peft

    layers = nn.ModuleDict({"key": nn.Linear(24, 16)})
    extra = {"feedforward_modules": []} if method == "IA3Config" else {}
    inject_adapter_in_model(getattr(peft, method)(target_modules=["key"], **extra), layers)
    for parameter in layers.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(5, 24)
    assert torch.equal(project(x, layers["key"])[0], layers["key"](x))
    assert not torch.equal(layers["key"](x), layers["key"].base_layer(x))


@pytest.mark.parametrize("kind", ["adapters", "all weights"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("before", ["norm", "swiglu"])
def test_what_is_made_again_for_the_backward_pass_is_not_kept_and_changes_no_bit(before, autocast, kind):
    layers = adapted() if kind == "adapters" else plain()
    norm = RMSNorm(24, 1e-6)
    nn.init.normal_(norm.weight)

    def made(again: bool) -> tuple[bool, list[torch.Tensor]]:
        """Whether what the layers read is still in memory between the passes, and all results."""
        torch.manual_seed(1)
        inputs = [torch.randn(50, 24, requires_grad=True) for _ in range(2)]
        layers.zero_grad()
        norm.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            dtype = torch.bfloat16 if autocast else torch.float32
            y = norm(inputs[0]) if before == "norm" else swiglu(*(each.to(dtype) for each in inputs))
            if not again:
                y = y.view_as(y)
            kept = StorageWeakRef(y.untyped_storage())
            outs = project(y, *layers.values())
            del y
        there = not kept.expired()
        torch.autograd.backward(outs, [torch.ones_like(out) for out in outs])
        every = (*inputs, *layers.parameters(), *norm.parameters())
        return there, [*outs, *(each.grad for each in every if each.grad is not None)]

    (forgotten, ours), (held, expected) = made(again=True), made(again=False)
    assert not forgotten and held
    assert len(ours) == len(expected) >= 9
    assert all(torch.equal(one, two) for one, two in zip(ours, expected, strict=True))


def test_what_is_made_again_can_be_asked_for_in_parts_and_twice():
    norm, layers = RMSNorm(24, 1e-6), plain()

    def gradients(again: bool) -> list[torch.Tensor]:
        torch.manual_seed(1)
        x = torch.randn(50, 24, requires_grad=True)
        y = norm(x)
        first, second, third = project(y if again else y.view_as(y), *layers.values())
        wanted = [x, *layers["query"].parameters()]
        found = list(torch.autograd.grad(first.sum(), wanted, retain_graph=True))
        wanted = [x, *(layer.weight for layer in layers.values())]
        found += torch.autograd.grad(first.sum() + 2 * second.sum() + 3 * third.sum(), wanted, retain_graph=True)
        return found + list(torch.autograd.grad(third.sum(), [x, layers["value"].weight]))

    assert all(torch.equal(one, two) for one, two in zip(gradients(True), gradients(False), strict=True))


def test_what_was_changed_since_it_was_made_is_kept():
    norm, layer = RMSNorm(24, 1e-6), nn.Linear(24, 16)
    x = torch.randn(5, 24, requires_grad=True)
    z = norm(x).mul_(2)
    (slope,) = torch.autograd.grad(project(z, layer)[0].sum(), layer.weight)
    assert torch.allclose(slope, z.detach().sum(0).expand(16, 24), atol=1e-5)


def test_what_needs_no_gradient_is_not_made_again():
    y = RMSNorm(24, 1e-6).requires_grad_(False)(torch.randn(5, 24))
    assert not hasattr(y, "again")
    with torch.no_grad():
        assert not hasattr(RMSNorm(24, 1e-6)(torch.randn(5, 24)), "again")


@pytest.mark.parametrize(
    "numbers", [(4, float("nan"), 0.0), (4, 8.0, 1.0), (4, "16", 0.0), (0, 8.0, 0.0), (4, 8.0, "half")]
)
def test_numbers_that_are_none_are_refused(numbers):
    with pytest.raises((TypeError, ValueError, ZeroDivisionError)):
        LoRA(nn.Linear(24, 16), *numbers)


@pytest.mark.parametrize(
    ("share", "less"), [(0.0, 50 * 24 * 4), (0.1, 0)]
)  # with dropout no product needs its input itself
def test_all_that_is_kept_is_counted_where_torchs_own_hooks_do_not_see_it(share, less):
    norm, layers = RMSNorm(24, 1e-6), adapted(dropout=share)

    def kept(again: bool) -> int:
        """Bytes."""
        seen: list[torch.Tensor] = []

        def count(tensor: torch.Tensor) -> torch.Tensor:
            seen.append(tensor)
            return tensor

        counting.append(count)
        with saved_tensors_hooks(count, lambda tensor: tensor):
            y = norm(torch.ones(50, 24, requires_grad=True))
            project(y if again else y.view_as(y), *layers.values())
        counting.remove(count)
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in seen}
        return sum(storages.values())

    assert kept(again=False) - kept(again=True) == less
