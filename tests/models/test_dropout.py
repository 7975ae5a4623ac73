"""Dropout: its probability, its scale and its gradient, and that seeds settle it."""

from __future__ import annotations

import pytest
import torch

from danlu.core.errors import UserError
from danlu.models import decoder, encoder
from danlu.models.decoder import Decoder
from danlu.models.dropout import Dropout, dropout
from danlu.models.encoder import Encoder


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_as_many_are_dropped_as_asked_and_the_rest_is_scaled(probability, dtype):
    torch.manual_seed(0)
    x = torch.ones(1001, 997, dtype=dtype, requires_grad=True)
    out = dropout(x, probability)
    kept = out != 0
    sure = 5 * (probability * (1 - probability) / x.numel()) ** 0.5  # five standard deviations
    assert float(kept.double().mean()) == pytest.approx(1 - probability, abs=sure)
    assert out.dtype == dtype and out[kept].unique().numel() == 1
    assert float(out.detach()[kept][0]) == pytest.approx(
        1 / (1 - probability), rel=1e-2 if dtype == torch.bfloat16 else 1e-3
    )
    out.sum().backward()
    assert torch.equal(x.grad, out)
    pairs = kept[:, :-1] & kept[:, 1:]  # four come from one draw: neighbours are independent all the same
    assert float(pairs.double().mean()) == pytest.approx((1 - probability) ** 2, abs=2 * sure)


def test_rare_ones_are_dropped_as_often_as_asked():
    """Of 2^24 numbers one in 2^18: all of them ties of the upper 16 bits."""
    torch.manual_seed(0)
    dropped = int((dropout(torch.ones(1 << 24), 2**-18) == 0).sum())
    assert dropped == pytest.approx(64, abs=5 * 64**0.5)


def test_a_seed_settles_it_whatever_the_number_of_threads():
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(3)
            found.append(dropout(torch.arange(1.0, 300_001.0), 0.1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_nothing_is_dropped_behind_training_and_all_of_it_at_one():
    x = torch.randn(7, 3)
    assert Dropout(0.4).eval()(x) is x and Dropout(0.0)(x) is x
    assert not Dropout(1.0)(x).any()


@pytest.mark.parametrize("probability", [-0.1, 1.5, float("nan")])
def test_what_is_no_probability_is_refused(probability):
    with pytest.raises(ValueError, match=r"probability|NaN"):
        dropout(torch.randn(7, 3), probability)


@pytest.mark.parametrize("value", [-0.1, 1.5, "much"])
def test_a_config_of_no_probability_is_one_error(value):
    for network, config, key in (
        (Decoder, decoder.describe(1, 64, 16), "attention_dropout"),
        (Encoder, encoder.describe(1, 64, 16), "attention_probs_dropout_prob"),
        (Encoder, encoder.describe(1, 64, 16), "classifier_dropout"),
    ):
        with pytest.raises(UserError, match=rf"{key} is {value!r}, expected 0 to 1"):
            network({**config, key: value})
