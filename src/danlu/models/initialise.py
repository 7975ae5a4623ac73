"""Initial weights by name, of any network, from a seed alone."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from danlu.core.errors import UserError, nearest


DEVIATION = 0.02
"""Standard deviation of `normal`, `gpt2`, `zero_residual` and of every embedding."""
RESIDUAL = re.compile(r"(^|\.)(o_proj|down_proj|c_proj|out_proj|fc2|output\.dense)$")
"""Layers whose output is added to what goes past them, under the names that transformers gives them."""

Draw = Callable[[Tensor, torch.Generator], Any]


class Undrawn(TorchFunctionMode):
    """Inside, `torch.nn.init` draws nothing: for modules on the meta device, where drawing imports torch's compiler, a second or two."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init" or function is Tensor.normal_:  # not all ask first
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What is drawn inside, by torch, NumPy or Python, depends on the seed alone; behind it all is as before."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (other people's code draws from it)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002


def _normal(weight: Tensor, rng: torch.Generator) -> Any:
    return nn.init.normal_(weight, std=DEVIATION, generator=rng)


INITIALISATIONS: dict[str, Draw] = {
    "normal": _normal,
    "xavier_uniform": lambda w, rng: nn.init.xavier_uniform_(w, generator=rng),
    "kaiming_normal": lambda w, rng: nn.init.kaiming_normal_(w, nonlinearity="relu", generator=rng),
    "orthogonal": lambda w, rng: nn.init.orthogonal_(w, generator=rng),
    "gpt2": _normal,
    "zero_residual": _normal,
}
"""name -> what fills a weight [outputs, inputs, …] in place"""
RESIDUAL_SCALES: dict[str, Callable[[int], float]] = {
    "gpt2": lambda n: 1 / math.sqrt(n),
    "zero_residual": lambda _: 0.0,
}
"""name -> (number of residual layers -> what their weights are multiplied by)"""
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@torch.no_grad()
def initialise(model: nn.Module, name: str, seed: int) -> None:
    """Draw the weights of all linear layers, convolutions and embeddings anew, in place; biases 0. Equal for equal seeds, bit for bit.

    `normal`: standard deviation 0.02 (Devlin et al. 2019). `xavier_uniform`: variance 2 / (inputs + outputs) (Glorot and Bengio 2010).
    `kaiming_normal`: variance 2 / inputs (He et al. 2015). `orthogonal`: orthonormal rows, or columns where there are more rows (Saxe
    et al. 2014). `gpt2`: as `normal`, and layers that write into the residual stream, `n` of them, 0.02 / sqrt(n) (Radford et al. 2019).
    `zero_residual`: as `normal`, and those layers 0, so that each block begins as the identity (Goyal et al. 2017; Zhang et al. 2019).

    Embeddings are normal(0, 0.02) whatever the name: a row of theirs is picked, not summed over inputs. An output matrix that is the
    embedding keeps the embedding's weights. Norms, and positions that are no layer, stay as they are.

    Raises:
        UserError: there is no such initialisation, `gpt2` or `zero_residual` finds no residual layers in the model, or nothing is drawn.
    """
    if name not in INITIALISATIONS:
        listed = ", ".join(INITIALISATIONS)
        raise UserError(f"initialise: found {name!r}, expected one of {listed}", nearest(name, INITIALISATIONS))
    layers = {path: each for path, each in model.named_modules() if isinstance(each, (*WEIGHTED, *TRANSPOSED))}
    residual = {path for path in layers if RESIDUAL.search(path)}
    if name in RESIDUAL_SCALES and not residual:
        raise UserError(
            f"initialise={name}: {type(model).__name__} has no layers named o_proj, down_proj or alike",
            "choose normal, or another initialisation",
        )
    rng = torch.Generator().manual_seed(seed)
    tables = {id(each.weight): each for each in model.modules() if isinstance(each, nn.Embedding)}
    if not layers and not tables:
        raise UserError(f"initialise={name}: nothing to draw, no linear layer or convolution of torch", "leave it out")
    for table in tables.values():
        _fill(table.weight, INITIALISATIONS["normal"], rng)
        if table.padding_idx is not None:
            table.weight[table.padding_idx] = 0
    for path, layer in layers.items():
        normalised = parametrize.is_parametrized(layer, "weight")
        weight = cast(Any, layer).parametrizations.weight.original if normalised else layer.weight
        if id(weight) not in tables:
            turned = weight.transpose(0, 1) if isinstance(layer, TRANSPOSED) else weight
            scale = RESIDUAL_SCALES[name](len(residual)) if name in RESIDUAL_SCALES and path in residual else 1.0
            _fill(turned, INITIALISATIONS[name], rng, scale)
        if layer.bias is not None:
            layer.bias.zero_()
        # as at its making: looking at it brings spectral normalisation nearer to the weight
        for _ in range(15 * normalised):
            layer.weight  # noqa: B018


@torch.no_grad()
def embed(model: nn.Module, tokens: Tensor, vectors: Tensor, seed: int) -> None:
    """The embedding of some tokens from word vectors, in place. tokens: int64 [n]; vectors: float32 [n, any width].

    Centred, as random rows are. Narrower than the vectors the embedding keeps their principal components, the best that many numbers can
    do (Eckart and Young 1936). These are turned into the embedding's width by random orthonormal rows of `seed`, which keeps every inner
    product and leaves no column emptier than others. Scaled so that the rows deviate as those that were drawn.
    """
    names = ("embed_tokens", "word_embeddings")
    table = next(cast(Tensor, each.weight) for name, each in model.named_modules() if name.endswith(names))
    x = vectors.double() - vectors.double().mean(0)
    kept = min(x.shape[1], table.shape[1])
    components = torch.linalg.eigh(x.T @ x)[1].flip(1)[:, :kept]
    drawn = torch.randn(table.shape[1], kept, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    x = x @ components @ torch.linalg.qr(drawn)[0].T
    table[tokens] = (x * (table.double().std() / x.std())).to(table.dtype)


def _fill(weight: Tensor, draw: Draw, rng: torch.Generator, scale: float = 1.0) -> None:
    """Drawn in float32 on the CPU, so that neither the device nor the type of the weight changes what is drawn."""
    drawn = torch.empty(weight.shape)
    draw(drawn, rng)
    weight.copy_(drawn * scale)
