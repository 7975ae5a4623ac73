"""Autoencoders and adversarial pairs: shapes at any size, what they can learn, and what of them is fine-tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.models.generative import Autoencoder, Gan
from danlu.models.pretrained import save
from danlu.models.vision import describe, from_config, load


DIGITS = Path(__file__).parents[2] / "examples/data/digits.npz"
SIZES = pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 9), (1, 13), (1, 28), (3, 30), (1, 33)])
CONVOLUTIONAL = pytest.mark.parametrize("convolutional", [True, False])
NAMES = pytest.mark.parametrize("name", ["autoencoder", "gan"])


def digits(n: int) -> Tensor:
    """Real ones, [n, 1, 28, 28] in [-1, 1]."""
    with np.load(DIGITS, allow_pickle=False) as file:
        return torch.tensor(file["images"][:n]).float().div(127.5).sub(1)[:, None]


def autoencoder(seed: int = 0, **choices: Any) -> Autoencoder:
    return cast(Autoencoder, from_config(describe("autoencoder", **{"channels": 1, "size": 28} | choices), seed=seed))


def gan(seed: int = 0, **choices: Any) -> Gan:
    return cast(Gan, from_config(describe("gan", **{"channels": 1, "size": 28} | choices), seed=seed))


def equal(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


# --------------------------------------------------------------------------------------------------------- autoencoders


@SIZES
@CONVOLUTIONAL
def test_an_autoencoder_takes_images_of_any_size(channels: int, size: int, convolutional: bool) -> None:
    network = autoencoder(channels=channels, size=size, convolutional=convolutional, code=6)
    x = torch.randn(4, channels, size, size)
    code = network.encode(x)
    assert code.shape == (4, 6)
    assert torch.equal(network(x), code)
    assert network.decode(code).shape == x.shape
    assert torch.equal(network.reconstruct(x), network.decode(code))
    network.reconstruct(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_widths_of_a_plain_autoencoder_are_mirrored() -> None:
    network = autoencoder(convolutional=False, hidden=(256, 64), code=16, activation="tanh")
    shapes = [tuple(p.shape) for p in network.parameters() if p.ndim > 1]
    assert shapes == [(256, 784), (64, 256), (16, 64), (64, 16), (256, 64), (784, 256)]
    assert sum(isinstance(part, nn.Tanh) for part in network.modules()) == 4  # none after the code or the last layer


@CONVOLUTIONAL
def test_an_autoencoder_learns_sixteen_digits_by_heart(convolutional: bool) -> None:
    x, network = digits(16), autoencoder(convolutional=convolutional)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        F.mse_loss(network.reconstruct(x), x).backward()
        optimizer.step()
    left = F.mse_loss(network.eval().reconstruct(x), x) / (x - x.mean(0)).square().mean()
    assert left < 0.05  # of what the mean digit leaves unexplained


# --------------------------------------------------------------------------------------------------- adversarial pairs


@SIZES
def test_a_pair_makes_and_judges_images_of_any_size(channels: int, size: int) -> None:
    network = gan(channels=channels, size=size, code=5)
    made = network.generator(torch.randn(4, 5))
    assert made.shape == (4, channels, size, size)
    assert made.abs().max() <= 1
    logits = network.discriminator(made)
    assert logits.shape == (4,)
    features = network(made)
    assert features.ndim == 2
    network.eval()
    torch.testing.assert_close(network.discriminator.score(network(made)).squeeze(1), network.discriminator(made))
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == {"generator", "discriminator"}


def test_the_discriminator_judges_each_image_by_itself_with_matrices_of_norm_one() -> None:
    network, x = gan(), digits(8)
    for _ in range(50):
        network.discriminator(x)  # each pass in training mode brings the estimate of the norms nearer
    network.eval()
    each = torch.cat([network.discriminator(image[None]) for image in x])
    torch.testing.assert_close(network.discriminator(x), each, rtol=1e-4, atol=1e-5)
    layers = [part for part in network.discriminator.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 3
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


def test_evaluation_mode_changes_no_buffer() -> None:
    network = gan()
    noise = torch.randn(4, 64)

    def moved() -> set[str]:
        before = {name: value.clone() for name, value in network.state_dict().items()}
        network.discriminator(network.generator(noise))
        return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}

    assert {name.rsplit(".", 1)[1] for name in moved()} >= {"running_mean", "running_var", "_u", "_v"}
    network.eval()
    assert moved() == set()
    whole = network.generator(noise)
    torch.testing.assert_close(whole, torch.cat([network.generator(one[None]) for one in noise]), rtol=1e-4, atol=1e-5)


def test_a_pair_plays() -> None:
    """The discriminator tells digits from first attempts, and the generator, alone, then learns to please it."""
    network, real, rng = gan(code=16), digits(64), torch.Generator().manual_seed(0)
    pleased: list[float] = []
    for name, sign in (("discriminator", 1), ("generator", -1)):
        learning = torch.optim.Adam(getattr(network, name).parameters(), lr=2e-3, betas=(0.5, 0.999))
        for _ in range(40):
            generated = network.discriminator(network.generator(torch.randn(64, 16, generator=rng)))
            loss = F.softplus(sign * generated).mean()
            loss = loss + F.softplus(-network.discriminator(real)).mean() if sign == 1 else loss
            network.zero_grad()
            loss.backward()
            learning.step()
        pleased.append((generated > 0).float().mean().item())
    assert pleased[0] == 0.0  # no attempt passed for a digit
    assert pleased[1] > 0.9


# -------------------------------------------------------------------------------------------------- saved and fine-tuned


@NAMES
def test_weights_depend_on_the_seed_alone_and_survive_a_folder(name: str, tmp_path: Path) -> None:
    config = describe(name, channels=1, size=13)
    network = from_config(config, seed=1)
    torch.rand(3)
    assert equal(network, from_config(config, seed=1))
    assert not equal(network, from_config(config, seed=2))
    x = torch.randn(4, 1, 13, 13)
    cast(Any, network).reconstruct(x) if name == "autoencoder" else network(x)
    save(network, tmp_path)
    read = load(tmp_path, log=pytest.fail)
    assert equal(read, network)
    assert (read.head, read.config) == (None, network.config | {"torch_dtype": "float32"})
    assert torch.equal(read.eval()(x), network.eval()(x))


def test_what_a_generator_remembers_survives_a_folder(tmp_path: Path) -> None:
    network = gan()
    noise = torch.randn(4, 64)
    network.generator(noise)
    save(network, tmp_path)
    read = cast(Gan, load(tmp_path))
    assert torch.equal(read.eval().generator(noise), network.eval().generator(noise))


@NAMES
def test_fine_tuning_takes_the_half_that_sees_and_a_new_head(name: str, tmp_path: Path) -> None:
    network = from_config(describe(name, channels=1, size=28), seed=1)
    save(network, tmp_path)
    said: list[str] = []
    tuned = load(tmp_path, labels=["a", "b"], seed=2, log=said.append)
    assert [line.split(":")[0] for line in said] == [
        "weights that this task has no use for, not taken over",
        "new head",
    ]
    assert ("decoder." if name == "autoencoder" else "discriminator.score") in said[0]
    x = digits(5)
    features = tuned.eval()(x)
    assert torch.equal(features, network.eval()(x))
    assert tuned.logits(features).shape == (5, 2)
    names = {parameter.split(".")[0] for parameter, _ in tuned.named_parameters()}
    assert names == {"encoder" if name == "autoencoder" else "discriminator", "classifier"}
    tuned.train().logits(tuned(x)).sum().backward()
    assert all(p.grad is not None for p in tuned.parameters())  # nothing is carried along that does not learn
    save(tuned, tmp_path / "tuned")
    assert equal(load(tmp_path / "tuned", labels=["a", "b"], log=pytest.fail), tuned)
    scratch = from_config(network.config, labels=["a", "b"], seed=2)  # the same network from random weights
    assert list(scratch.state_dict()) == list(tuned.state_dict())
