"""Frozen layers with adapters are computed as PEFT computes them, and left to PEFT where they would not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from danlu.models.linear import Adapted, project


def adapted(**options: Any) -> nn.ModuleDict:
    """Three layers of one input, with biases and without, whose adapters have moved."""
    torch.manual_seed(0)
    widths = {"query": 40, "key": 16, "value": 16}
    layers = nn.ModuleDict({name: nn.Linear(24, width, bias=name == "query") for name, width in widths.items()})
    config = LoraConfig(r=4, lora_alpha=12, target_modules=list(layers), **({"lora_dropout": 0.0} | options))
    inject_adapter_in_model(config, layers)
    for name, parameter in layers.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return layers


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
    trained = {name: p.grad for name, p in layers.named_parameters() if p.grad is not None}
    return {**dict(zip("qkv", outs, strict=True)), "x": x.grad, **trained}


def theirs(x: torch.Tensor, *layers: nn.Module) -> tuple[torch.Tensor, ...]:
    return tuple(layer(x) for layer in layers)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("rank", [{}, {"rank_pattern": {"key": 7}, "alpha_pattern": {"key": 3}}])
def test_outputs_and_gradients_are_those_of_peft(rank, autocast):
    layers = adapted(**rank)
    assert all(Adapted.of(layer) for layer in layers.values())
    ours, expected = (gradients(layers, compute, autocast) for compute in (project, theirs))
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
    together = layers["query"].lora_A["default"].weight.grad.clone()
    layers.zero_grad()
    theirs(x[:3], *layers.values())[0].sum().backward()
    assert torch.allclose(together, layers["query"].lora_A["default"].weight.grad, atol=1e-5)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "hook": lambda layer: layer.lora_A["default"].register_forward_hook(lambda *_: None),
    "backward hook": lambda layer: layer.base_layer.register_full_backward_hook(lambda *_: None),
    "off": lambda layer: layer.enable_adapters(False),
    "merged": lambda layer: layer.merge(),
    "hook before": lambda layer: layer.register_forward_pre_hook(lambda *_: None),
    "hook of the dropout": lambda layer: layer.lora_dropout["default"].register_forward_hook(lambda *_: None),
    "base trained": lambda layer: layer.base_layer.weight.requires_grad_(True),
    "second adapter": lambda layer: layer.update_layer("other", r=4, lora_alpha=4, config=LoraConfig()),
}


OPTIONS = {"dropout": {"lora_dropout": 0.1}, "dora": {"use_dora": True}, "biased": {"lora_bias": True}}


class Twice(nn.Linear):
    """Not what its weights say."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.filterwarnings(
    "ignore:.lora_bias=True. was passed"
)  # to a layer without a bias, which is all the same here
@pytest.mark.parametrize("change", [*CHANGES, *OPTIONS, "no adapter", "another layer"])
def test_what_would_be_another_formula_is_left_to_peft(change):
    layers = adapted(**OPTIONS.get(change, {}))
    if change == "another layer":
        layers["key"].base_layer.__class__ = Twice
    if change == "no adapter":
        layers["key"] = nn.Linear(24, 16)
    elif change in CHANGES:
        CHANGES[change](layers["key"])
        if change == "second adapter":
            layers["key"].set_adapter(["default", "other"])
    assert Adapted.of(layers["key"]) is None
    x = torch.randn(5, 24)
    for compute in (project, theirs):
        torch.manual_seed(2)
        outs = compute(x, *layers.values())
        if compute is project:
            expected = outs
    assert all(torch.equal(ours, other) for ours, other in zip(expected, outs, strict=True))


def test_dropout_is_over_when_training_is():
    layers = adapted(lora_dropout=0.1)
    assert Adapted.of(layers["key"]) is None and Adapted.of(layers["key"].eval())


def test_other_types_and_shapes_are_for_peft_to_judge():
    layers = adapted()
    x = torch.randn(3, 5, 24)
    assert torch.equal(project(x, layers["query"])[0], layers["query"](x))
    half = adapted().bfloat16()
    for name, parameter in half.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    x = torch.randn(5, 24, dtype=torch.bfloat16)
    assert torch.equal(project(x, half["query"])[0], half["query"](x))
    with pytest.raises(RuntimeError, match="same dtype"):
        project(torch.randn(5, 24, dtype=torch.float64), layers["query"])


@pytest.mark.parametrize("method", ["LoHaConfig", "IA3Config"])
def test_other_adapters_of_peft_work_as_they_did(method):
    import peft

    layers = nn.ModuleDict({"key": nn.Linear(24, 16)})
    extra = {"feedforward_modules": []} if method == "IA3Config" else {}
    inject_adapter_in_model(getattr(peft, method)(target_modules=["key"], **extra), layers)
    x = torch.randn(5, 24)
    assert torch.equal(project(x, layers["key"])[0], layers["key"](x))
