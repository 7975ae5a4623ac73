"""Which kernels are taken on a card, and that they are asked for what the blocks mean; no card is needed to see that."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.models import kernels
from danlu.models.blocks import Layout, RMSNorm, attend, swiglu


def on(kind: str, dtype: torch.dtype = torch.bfloat16, d: int = 64) -> Any:
    return SimpleNamespace(device=torch.device(kind), dtype=dtype, shape=(10, 4, d))


def test_joined_documents_go_to_flash_attention_where_it_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert kernels.flash(on("cuda"), 0.0) and kernels.flash(on("cuda", torch.float16, 256), 0.0)
    refused = [on("cpu"), on("cuda", torch.float32), on("cuda", d=257), on("cuda", d=20)]
    assert not any(kernels.flash(each, 0.0) for each in refused)
    assert not kernels.flash(on("cuda"), 0.1), "it knows no dropout"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not kernels.flash(on("cuda"), 0.0)


def naive(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, other: Tensor, longest: int, most: int, **how: Any) -> Tensor:
    """What PyTorch documents of varlen_attn, a document at a time."""
    assert torch.equal(ends, other) and ends.dtype == torch.int32 and longest == most == int(ends.diff().max())
    assert how["enable_gqa"] == (q.shape[1] != k.shape[1])
    left, right = how["window_size"]
    outs = []
    for first, end in pairwise(ends.tolist()):
        query, key, value = (x[first:end].transpose(0, 1) for x in (q, k, v))
        key, value = (x.repeat_interleave(len(query) // len(x), 0) for x in (key, value))
        place = torch.arange(end - first)
        apart = place[:, None] - place
        unseen = ((apart > left) if left >= 0 else apart > len(place)) | ((-apart > right) if right >= 0 else apart < -len(place))  # fmt: skip
        scores = (query @ key.transpose(1, 2) * how["scale"]).masked_fill(unseen, -torch.inf)
        outs.append((scores.softmax(-1) @ value).transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 5), (False, None)])
def test_it_is_asked_for_the_same_attention(causal: bool, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(41, heads, 8, generator=rng, dtype=torch.float64) for heads in (6, 2, 2))
    layout = Layout((7, 1, 33), causal, torch.device("cpu"))
    want = attend(q, k, v, layout, window=window)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", naive)
    monkeypatch.setattr(kernels, "flash", lambda q, dropout: True)
    torch.testing.assert_close(attend(q, k, v, layout, window=window), want, rtol=1e-10, atol=1e-10)


def test_liger_is_taken_on_a_card_if_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels._installed.cache_clear()
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    assert kernels.liger(on("cuda")) is None
    functional = ModuleType("liger_kernel.transformers.functional")
    for module in (ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers"), functional):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    kernels._installed.cache_clear()
    assert kernels.liger(on("cuda")) is functional
    assert kernels.liger(on("cpu")) is None and kernels.liger(on("cuda", torch.float64)) is None
    kernels._installed.cache_clear()


def test_liger_is_asked_for_the_same_norm_and_the_same_product(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    norm, x, up = RMSNorm(16, 1e-3), *(torch.randn(5, 16, generator=rng) for _ in range(2))
    plain = norm(x), swiglu(x, up)

    def rms_norm(x: Tensor, weight: Tensor, eps: float, in_place: bool = True) -> Tensor:
        assert not in_place, "the gradient that comes back may be needed elsewhere"
        return F.rms_norm(x, weight.shape, weight, eps)

    fused = SimpleNamespace(liger_rms_norm=rms_norm, liger_swiglu=lambda gate, up: F.silu(gate) * up)
    monkeypatch.setattr(kernels, "liger", lambda x: fused)
    torch.testing.assert_close((norm(x), swiglu(x, up)), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == torch.bfloat16
