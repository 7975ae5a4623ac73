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
from danlu.models.attention import Layout, attend
from danlu.models.blocks import RMSNorm


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
    monkeypatch.setattr(kernels, "_varlen", lambda: naive)
    monkeypatch.setattr(kernels, "flash", lambda q, dropout: True)
    torch.testing.assert_close(attend(q, k, v, layout, window=window), want, rtol=1e-10, atol=1e-10)


def rms(x: Tensor, weight: Tensor, eps: float, casting_mode: str, in_place: bool = True) -> Tensor:
    assert casting_mode == "gemma", "float32 until the end"
    assert not in_place, "the gradient that comes back may be needed elsewhere"
    return F.rms_norm(x, weight.shape, weight, eps)


def test_ligers_norm_is_taken_on_a_card_if_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.ones(64)
    kernels._installed.cache_clear()
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    assert kernels.rms_norm(on("cuda"), weight, 1e-3) is None
    functional = ModuleType("liger_kernel.transformers.functional")
    functional.liger_rms_norm = lambda x, *more, **how: x  # type: ignore[attr-defined]
    for module in (ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers"), functional):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    kernels._installed.cache_clear()
    x = on("cuda")
    assert kernels.rms_norm(x, weight, 1e-3) is x
    assert kernels.rms_norm(on("cpu"), weight, 1e-3) is None
    assert kernels.rms_norm(on("cuda", torch.float64), weight, 1e-3) is None
    kernels._installed.cache_clear()


def test_it_is_asked_for_the_same_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    norm, x = RMSNorm(16, 1e-3), torch.randn(5, 16, generator=rng)
    plain, asked = norm(x), kernels.rms_norm

    def on_a_card(x: Tensor, weight: Tensor, epsilon: float) -> Tensor | None:
        card = SimpleNamespace(device=torch.device("cuda"), dtype=x.dtype)
        monkeypatch.setattr(kernels, "_installed", lambda: SimpleNamespace(liger_rms_norm=lambda _, *a, **b: rms(x, *a, **b)))  # fmt: skip
        return asked(card, weight, epsilon)  # type: ignore[arg-type]

    monkeypatch.setattr(kernels, "rms_norm", on_a_card)
    torch.testing.assert_close(norm(x), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == torch.bfloat16


def test_a_torch_without_all_that_is_asked_goes_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    kernels._varlen.cache_clear()
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda query, key, value, is_causal=False: query)
    assert not kernels.flash(on("cuda"), 0.0)
    kernels._varlen.cache_clear()
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    assert not kernels.flash(on("cuda"), 0.0)
    kernels._varlen.cache_clear()
