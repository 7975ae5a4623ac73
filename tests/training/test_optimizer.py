"""danlu's optimizers are torch's own, bit for bit, without importing torch's compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from danlu.training.optimizer import optimizer
from danlu.training.options import TrainingOptions


THEIRS = {
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9, fused=True),
    "adam": lambda groups: torch.optim.Adam(groups, betas=(0.9, 0.95), eps=1e-8, fused=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=True),
}


@pytest.mark.parametrize("kind", THEIRS)
def test_weights_are_those_of_torchs_own(kind: str) -> None:
    torch.manual_seed(0)
    ours = {"layer.weight": nn.Parameter(torch.randn(7, 5)), "layer.bias": nn.Parameter(torch.randn(7))}
    theirs = {name: nn.Parameter(value.detach().clone()) for name, value in ours.items()}
    options = TrainingOptions(optimizer=kind, weight_decay=0.1, beta1=0.9, beta2=0.95, epsilon=1e-8)
    one = optimizer(ours, options, 0.01)
    decays = {"layer.weight": 0.1, "layer.bias": 0.0}
    two = THEIRS[kind]([{"params": [p], "lr": 0.01, "weight_decay": decays[name]} for name, p in theirs.items()])
    before = {name: value.detach().clone() for name, value in ours.items()}
    for _ in range(5):
        for name, value in ours.items():
            value.grad = torch.randn_like(value)
            theirs[name].grad = value.grad.clone()
        one.step()
        two.step()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]) and not torch.equal(value, before[name])
    one.zero_grad()
    assert all(value.grad is None for value in ours.values())


def test_none_imports_torchs_compiler() -> None:
    """torch's own do, when they are made and when they step: more than a second of every start."""
    code = """
import sys, torch
from danlu.training.optimizer import optimizer
from danlu.training.options import TrainingOptions
for kind in ("sgd", "adam", "adamw", "muon"):
    weight = torch.nn.Parameter(torch.ones(3, 3))
    made = optimizer({"layers.0.weight": weight}, TrainingOptions(optimizer=kind), 0.1)
    weight.grad = torch.eye(3)
    made.step()
    made.zero_grad()
    assert not torch.equal(weight, torch.ones(3, 3))
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
