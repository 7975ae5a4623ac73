"""Networks that make images: autoencoders, and a generator with its discriminator. No loss here; see `tasks/generative.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from danlu.models.blocks import count_labels
from danlu.models.vision import ACTIVATIONS, Network, initialise


class Autoencoder(Network):
    """Images to a code and back (Hinton and Salakhutdinov 2006), fully connected or convolutional (Masci et al. 2011).

    The code and the reconstruction are linear, so images may be normalised as one likes. Convolutions halve the side (rounding
    up), transposed ones double it, and what is too much is cut off. With labels there is a head over the code, and no decoder.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        channels, self.size = config["num_channels"], config["image_size"]
        hidden, code = list(config["hidden_sizes"]), config["code"]
        activation = ACTIVATIONS[config["activation"]]
        if config["convolutional"]:
            shape = (hidden[-1], *[-(-self.size // 2 ** len(hidden))] * 2)
            down, up = _down(channels, hidden, activation), _up(hidden[::-1], channels, activation)
            ends = [shape[0] * shape[1] * shape[2], code]
        else:
            shape, down, up = (channels, self.size, self.size), [], []
            ends = [channels * self.size**2, *hidden, code]
        self.encoder = nn.Sequential(*down, nn.Flatten(), *_dense(ends, activation))
        if config.get("id2label"):
            self.classifier = nn.Linear(code, count_labels(config, None))
        else:
            self.head = None
            self.decoder = nn.Sequential(*_dense(ends[::-1], activation), nn.Unflatten(1, shape), *up)
        initialise(self, config["activation"])

    def encode(self, images: Tensor) -> Tensor:
        """[n, channels, size, size] -> [n, code]"""
        return cast(Tensor, self.encoder(images))

    body = encode

    def decode(self, code: Tensor) -> Tensor:
        """[n, code] -> [n, channels, size, size]"""
        return cast(Tensor, self.decoder(code))[..., : self.size, : self.size]

    def reconstruct(self, images: Tensor) -> Tensor:
        """[n, channels, size, size] -> the same shape"""
        return self.decode(self.encode(images))


def _dense(widths: Sequence[int], activation: type[nn.Module]) -> list[nn.Module]:
    """Linear layers, an activation between each two."""
    layers = [nn.Linear(before, after) for before, after in pairwise(widths)]
    return [part for layer in layers for part in (activation(), layer)][1:]


def _down(channels: int, widths: Sequence[int], activation: type[nn.Module]) -> list[nn.Module]:
    """Convolutions that halve the side, rounding up."""
    pairs = pairwise([channels, *widths])
    return [part for before, after in pairs for part in (nn.Conv2d(before, after, 3, 2, 1), activation())]


def _up(widths: Sequence[int], channels: int, activation: type[nn.Module]) -> list[nn.Module]:
    """Transposed convolutions that double the side; a kernel of two strides leaves no checkerboard (Odena et al. 2016)."""
    pairs = pairwise([*widths, channels])
    return [part for before, after in pairs for part in (activation(), nn.ConvTranspose2d(before, after, 4, 2, 1))]


class Gan(Network):
    """A generator and a discriminator, convolutional without pooling (Radford et al. 2016, DCGAN), for images in [-1, 1].

    As there: batch normalisation and ReLU in the generator, tanh at its end, leaky ReLU in the discriminator, the generator's weights
    normal(0, 0.02). Otherwise than there the discriminator has spectral in place of batch normalisation (Miyato et al. 2018): it
    judges each image by itself and stays in balance. With labels it is the discriminator alone, with a head on its last map.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.discriminator = Discriminator(config)
        if config.get("id2label"):
            self.classifier = nn.Linear(self.discriminator.width, count_labels(config, None))
            del self.discriminator.score
        else:
            self.head = None
            self.generator = Generator(config)

    def body(self, images: Tensor) -> Tensor:
        """[n, channels, size, size] -> [n, width], the discriminator's last map."""
        return cast(Tensor, self.discriminator.layers(images))


class Generator(nn.Module):
    """Noise [n, code] -> images [n, channels, size, size] in [-1, 1]."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        widths, self.size = list(config["hidden_sizes"])[::-1], config["image_size"]
        start = -(-self.size // 2 ** len(widths))
        parts: list[nn.Module] = [nn.Linear(config["code"], widths[0] * start**2, bias=False)]
        parts.append(nn.Unflatten(1, (widths[0], start, start)))
        for before, after in pairwise(widths):
            parts += [nn.BatchNorm2d(before), nn.ReLU(), nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)]
        parts += [
            nn.BatchNorm2d(widths[-1]),
            nn.ReLU(),
            nn.ConvTranspose2d(widths[-1], config["num_channels"], 4, 2, 1),
        ]
        self.layers = nn.Sequential(*parts, nn.Tanh())
        for part in parts:
            if isinstance(part, (nn.Linear, nn.ConvTranspose2d)):
                nn.init.normal_(part.weight, std=0.02)

    def forward(self, noise: Tensor) -> Tensor:
        """[n, code] -> [n, channels, size, size]"""
        return cast(Tensor, self.layers(noise))[..., : self.size, : self.size]


class Discriminator(nn.Module):
    """Images [n, channels, size, size] -> logits [n], above 0 for what it takes to be real."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        widths = list(config["hidden_sizes"])
        parts: list[nn.Module] = []
        for before, after in pairwise([config["num_channels"], *widths]):
            parts += [spectral_norm(nn.Conv2d(before, after, 3, 2, 1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*parts, nn.Flatten())
        self.width = widths[-1] * (-(-config["image_size"] // 2 ** len(widths))) ** 2
        self.score = spectral_norm(nn.Linear(self.width, 1))

    def forward(self, images: Tensor) -> Tensor:
        """[n, channels, size, size] -> [n]"""
        return cast(Tensor, self.score(self.layers(images))).squeeze(1)
