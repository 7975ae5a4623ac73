"""Networks for images: perceptrons and VGG of our own; ResNet, ViT and every other image classifier through transformers.

Each is a `Network`. Autoencoders and adversarial pairs are in `models/generative.py`, made, read and written here like the others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from danlu.core.device import machine
from danlu.core.errors import UserError, nearest, reading
from danlu.models.base import Log
from danlu.models.blocks import count_labels
from danlu.models.dropout import Dropout
from danlu.models.folder import check_repeats, label_keys, labels_of, read_json, read_weights, some, unfit, weight_files
from danlu.models.initialise import Undrawn, seeded
from danlu.models.options import CODE, THEIRS
from danlu.models.pretrained import DROPOUTS, misfit, needless, opened


_VGG = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3)}
_RESNET = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
_VIT = {"vit": (4, 128, 4), "vit-tiny": (12, 192, 3), "vit-small": (12, 384, 6), "vit-base": (12, 768, 12)}
"""depth, width, heads: the three sizes of Touvron et al. 2021 (DeiT), whose `base` is Dosovitskiy et al. 2021's, and a small one"""

ARCHITECTURES = ("mlp", *_VGG, *(f"{name}_bn" for name in _VGG), *_RESNET, *_VIT, "autoencoder", "gan")
"""What `describe` can make a configuration of."""

SMALLEST = 8
"""Pixels a side, below which convolutions have nothing left to look at."""


def describe(
    name: str,
    *,
    channels: int,
    size: int,
    labels: Sequence[str] = (),
    hidden: Sequence[int] | None = None,
    activation: str = "relu",
    dropout: float | None = None,
    code: int | None = None,
    convolutional: bool = True,
    depth: int | None = None,
) -> dict[str, Any]:
    """The config.json of an architecture for square images of `channels` and `size` pixels a side.

    hidden, activation: widths of the hidden layers and what follows each (mlp, plain autoencoder). code: width of an autoencoder's
    code or of a generator's noise. depth: of `vit`, which is 32 wide a layer. dropout: None takes what the architecture's paper has.

    Small images: VGG does not pool maps below 4 pixels (which only images below 64 come to), and below 224 its classifier is 512
    wide; ResNet keeps its stem (its layout is transformers'), so 28 pixels become maps of 7, 7, 4, 2 and 1; ViT's patches divide the
    side, about seven to it, of 16 pixels at most.

    Raises:
        UserError: no architecture has that name, it does not read one of the choices, or the images are too small.
    """
    own = CODE.fullmatch(name) is not None
    if name not in ARCHITECTURES and not own:
        raise UserError(f"model={name}: no such architecture", nearest(name, ARCHITECTURES))
    if size < SMALLEST:
        raise UserError(f"images of {size} pixels a side, expected at least {SMALLEST}", f"set image_size={SMALLEST}")
    plain = name == "mlp" or (name == "autoencoder" and not convolutional)
    unread = [f"hidden={hidden}"] * (hidden is not None and not plain)
    unread += [f"activation={activation}"] * (activation != "relu" and not plain)
    unread += [f"code={code}"] * (code is not None and name not in ("autoencoder", "gan"))
    unread += [f"depth={depth}"] * (depth is not None and name != "vit")
    if unread:
        what = f"a convolutional {name}" if name == "autoencoder" else name
        fix = "leave it out" + (", or set convolutional=no" if name == "autoencoder" else "")
        raise UserError(f"{', '.join(unread)}: {what} does not read it", fix)
    config: dict[str, Any] = {"num_channels": channels, "image_size": size}
    if own:
        config |= {"model_type": OWN[-1], "code": name}
    elif name == "mlp":
        config |= {"model_type": "danlu_mlp", "hidden_sizes": list(hidden or (128,)), "activation": activation}
        config |= {"dropout": 0.0}
    elif name == "autoencoder":
        widths = _halving(size) if convolutional else list(hidden or (256,))
        config |= {"model_type": "danlu_autoencoder", "convolutional": convolutional, "hidden_sizes": widths}
        config |= {"activation": activation, "code": code or max(16, min(256, channels * size * size // 24))}
    elif name == "gan":
        config |= {"model_type": "danlu_gan", "hidden_sizes": _halving(size), "code": code or 64}
    elif name in _RESNET:
        wide = name == "resnet50"
        config |= {"model_type": "resnet", "depths": list(_RESNET[name]), "embedding_size": 64}
        config |= {"hidden_sizes": [256, 512, 1024, 2048] if wide else [64, 128, 256, 512]}
        config |= {"layer_type": "bottleneck" if wide else "basic"}
    elif name in _VIT:
        layers, width, heads = (depth, 32 * depth, depth) if depth else _VIT[name]
        config |= {"model_type": "vit", "patch_size": _patch(size), "hidden_size": width, "num_hidden_layers": layers}
        config |= {"num_attention_heads": heads, "intermediate_size": 4 * width}
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    else:
        full = size >= 224  # what the paper's classifier was made for
        config |= {"model_type": "vgg", "batch_norm": name.endswith("_bn"), "depths": list(_VGG[name.split("_")[0]])}
        config |= {"hidden_sizes": [64, 128, 256, 512, 512], "pool_size": 7 if full else max(1, size // 32)}
        config |= {"classifier_size": 4096 if full else 512, "dropout": 0.5}
    return _with_dropout(config, dropout) | (label_keys(labels) if labels else {})


def _halving(size: int) -> list[int]:
    """Channels of convolutions that each halve the side, until it is 7 at most."""
    return [min(256, 16 << step) for step in range(max(1, math.ceil(math.log2(size / 7))))]


def _patch(size: int) -> int:
    """A side that divides the image's, or leaves over as few pixels as can be; about seven a side, of 16 pixels at most."""
    most = min(16, max(2, size // 7))
    return min(range(most, most // 2, -1), key=lambda side: size % side)


def _with_dropout(config: dict[str, Any], dropout: float | None) -> dict[str, Any]:
    """`config` with every dropout it has at this probability."""
    places = [key for key in DROPOUTS if key in config]
    if dropout is not None and not places:
        raise UserError(f"dropout={dropout}: {config['model_type']} has none", "leave it out")
    return config if dropout is None else config | dict.fromkeys(places, dropout)


# ------------------------------------------------------------------------------------------------------------- networks


class Network(nn.Module):
    """Images [n, channels, size, size], float32 and normalised, -> features [n, width] -> logits [n, labels].

    config: the plain dict of config.json, with at least model_type, num_channels and image_size.
    head: the name of the linear layer that gives the logits; None without one.
    """

    head: str | None = "classifier"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config: dict[str, Any] = dict(config) | {"architectures": [type(self).__name__]}

    def body(self, images: Tensor) -> Tensor:
        """[n, channels, size, size] -> [n, width]"""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """[n, channels, size, size] -> features [n, width]"""
        if self.training and len(images) == 1:
            # torch's batch norm refuses a map of one pixel from one image; the image twice has the same statistics
            return self.body(images.expand(2, -1, -1, -1))[:1]
        return self.body(images)

    def logits(self, features: Tensor) -> Tensor:
        """[n, width] -> [n, labels]"""
        return cast(Tensor, self.get_submodule(cast(str, self.head))(features))


ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU}


def initialise(network: nn.Module, activation: str = "relu") -> None:
    """Weights normal with variance 2 / inputs before ReLU and GELU (He et al. 2015); before sigmoid and tanh uniform with
    variance 2 gain² / (inputs + outputs) (Glorot and Bengio 2010; the gains are torch's); biases 0."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            if activation in ("sigmoid", "tanh"):
                nn.init.xavier_uniform_(module.weight, nn.init.calculate_gain(cast(Any, activation)))
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Perceptron(Network):
    """Fully connected layers of any widths, each followed by the activation and dropout."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        widths = [config["num_channels"] * config["image_size"] ** 2, *config["hidden_sizes"]]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.activation = ACTIVATIONS[config["activation"]]()
        self.dropout = Dropout(config["dropout"])
        self.classifier = nn.Linear(widths[-1], count_labels(config, None))
        initialise(self, config["activation"])

    def body(self, images: Tensor) -> Tensor:
        """[n, channels, size, size] -> [n, width]"""
        x = images.flatten(1)
        for layer in self.layers:
            x = self.dropout(self.activation(layer(x)))
        return x


class VGG(Network):
    """Simonyan and Zisserman 2015, with or without batch normalisation, under torchvision's names."""

    head = "classifier.6"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        parts: list[nn.Module] = []
        before, side = config["num_channels"], config["image_size"]
        for depth, width in zip(config["depths"], config["hidden_sizes"], strict=True):
            for _ in range(depth):
                parts.append(nn.Conv2d(before, width, 3, padding=1))
                parts += [nn.BatchNorm2d(width)] if config["batch_norm"] else []
                parts.append(nn.ReLU(inplace=True))
                before = width
            parts.append(nn.MaxPool2d(2, 2) if side >= 4 else nn.Identity())
            side = side // 2 if side >= 4 else side
        self.features = nn.Sequential(*parts)
        self.avgpool = nn.AdaptiveAvgPool2d(config["pool_size"])
        inner, chance = config["classifier_size"], config["dropout"]
        self.classifier = nn.Sequential(
            nn.Linear(before * config["pool_size"] ** 2, inner),
            nn.ReLU(inplace=True),
            Dropout(chance),
            nn.Linear(inner, inner),
            nn.ReLU(inplace=True),
            Dropout(chance),
            nn.Linear(inner, count_labels(config, None)),
        )
        initialise(self)

    def body(self, images: Tensor) -> Tensor:
        """[n, channels, size, size] -> [n, classifier_size]"""
        return cast(Tensor, self.classifier[:-1](self.avgpool(self.features(images)).flatten(1)))


class Transformers(Network):
    """An image classifier of transformers under the names it has there; its features are what its last linear layer is given.

    Raises:
        UserError: it does not end in one linear layer, or its images are not square.
    """

    def __init__(self, network: nn.Module) -> None:
        settings, below = cast(Any, network).config, f"{cast(Any, network).base_model_prefix}."
        # what takes images of any size may name none: then it is what ImageNet's networks see
        super().__init__({"num_channels": 3, "image_size": 224} | settings.to_dict())
        self.config["architectures"] = [type(network).__name__]
        self.__dict__["network"] = network  # not a child: its parts become ours, in the same dictionaries
        self._modules, self._parameters, self._buffers = network._modules, network._parameters, network._buffers
        kind, sides = self.config["model_type"], self.config["image_size"]
        if not isinstance(sides, int):
            if len(set(sides)) != 1:
                raise UserError(f"{kind}: image_size is {sides}, expected a square", "choose another model")
            self.config["image_size"] = sides[0]
        linear = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
        heads = [name for name in linear if not name.startswith(below)]
        if len(heads) != 1:
            found = f"it ends in {len(heads)} linear layers ({some(set(heads))}), expected one"
            raise UserError(f"{kind}: {found}", "choose another architecture")
        self.head = heads[0]

    def train(self, mode: bool = True) -> Transformers:
        super().train(mode)
        cast(nn.Module, self.network).train(mode)
        return self

    def body(self, images: Tensor) -> Tensor:
        """[n, channels, size, size] -> [n, width]"""
        given: list[Tensor] = []
        head = self.get_submodule(cast(str, self.head))
        with head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])):
            cast(Any, self.network)(pixel_values=images)
        return given[0]


# ---------------------------------------------------------------------------------------------- from and to a description

OWN = ("danlu_mlp", "vgg", "danlu_autoencoder", "danlu_gan", THEIRS)
"""What is not transformers'; the last is a person's own network, of `models/own.py`."""
TRAINING_BYTES = 16
"""A parameter's weight, gradient and Adam's two moments in float32."""
LEFT_OUT = re.compile(r"^(decoder|generator|discriminator\.score)\.|(^|\.)(pooler\.|mask_token$)")
"""Weights of what was learned before that a classifier has no use for."""


def from_config(
    config: Mapping[str, Any], labels: Sequence[str] | None = None, seed: int = 0, network: Any = None
) -> Network:
    """The network of a config.json with weights that depend on the seed alone; in training mode.

    Ours are drawn by `initialise` and, for images, as `models/generative.py` says; ResNet by transformers as He et al. 2015 (normal,
    2 / outputs), ViT as Dosovitskiy et al. 2021 (normal, 0.02). labels: None takes the config's; an autoencoder or a pair with labels is
    its encoder or its discriminator, with a head. Heads: see `draw_head`. network: the code of a person's own.

    Raises:
        UserError: to train it takes more memory than the machine has; known before anything is allocated.
    """
    config = dict(config) | (label_keys(labels) if labels else {})
    if config.get("model_type") == OWN[-1]:
        from danlu.models import own

        return own.make(config, network, seed).train()
    needless(network, config)
    with torch.device("meta"), Undrawn():
        needed = sum(parameter.numel() for parameter in _build(config).parameters())
    if needed > (most := (memory := machine().memory_total) // TRAINING_BYTES):
        raise UserError(
            f"a network of {needed:,} parameters takes {needed * TRAINING_BYTES / 1e9:,.0f} GB to train"
            f" ({TRAINING_BYTES} bytes each), and this machine has {memory / 1e9:,.0f} GB",
            f"at most {most:,} parameters fit: a smaller architecture, or smaller hidden=, code= or image_size=",
        )
    with seeded(seed):
        made = _build(config)
    if made.head is not None:
        draw_head(made, seed)
    return made.train()


def _build(config: Mapping[str, Any]) -> Network:
    from danlu.models.generative import Autoencoder, Gan

    kinds: dict[str, type[Network]] = dict(zip(OWN, (Perceptron, VGG, Autoencoder, Gan), strict=False))
    if config.get("model_type") in kinds:
        return kinds[config["model_type"]](config)
    from transformers import AutoModelForImageClassification

    return Transformers(AutoModelForImageClassification.from_config(_settings(config), trust_remote_code=False))


def draw_head(network: Network, seed: int) -> None:
    """Draw the last layer anew, as torch does: uniform between ±1 / sqrt(width). Equal for equal seeds whatever is below it."""
    with seeded(seed):
        cast(nn.Linear, network.get_submodule(cast(str, network.head))).reset_parameters()


def _head(network: Network) -> set[str]:
    return {name for name in network.state_dict() if name.startswith(f"{network.head}.")}


def load(
    folder: Path,
    *,
    labels: Sequence[str] | None = None,
    new_head: bool = False,
    dropout: float | None = None,
    seed: int = 0,
    log: Log = print,
    network: Any = None,
) -> Network:
    """The network in `folder`, float32, in training mode; safetensors only, and no code but ours and transformers'.

    labels: in the order of the outputs; None or none takes the folder's. For other labels than the folder's, or with `new_head`, the
    head is drawn anew by `seed`, and `log` says so. Of an autoencoder this gives the encoder, of an adversarial pair the discriminator.
    network: the code of a person's own, without which such a folder is not opened.

    Raises:
        UserError: a weight is missing, unknown or of another shape (all named), a file is damaged, or it is no image classifier.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    files = weight_files(folder)
    with reading(folder):
        check_repeats(config, folder)
        old = labels_of(config)
        wanted_labels = list(labels) if labels else old
        fresh = wanted_labels is not None and (new_head or wanted_labels != old)
        config |= label_keys(wanted_labels) if wanted_labels is not None else {}
        if config.get("model_type") == OWN[-1]:
            from danlu.models import own

            return own.load(folder, _with_dropout(config, dropout), network, seed, fresh, log).train()
        needless(network, config)
        if config.get("model_type") in OWN:
            found, missing, unknown = _own(files, _with_dropout(config, dropout), fresh)
        else:
            settings = _settings(_with_dropout(_settings(config).to_dict(), dropout))
            found, missing, unknown = _through_transformers(folder, settings, fresh, seed)
    head = _head(found) if fresh else set()
    useless = {name for name in unknown if found.head is not None and LEFT_OUT.search(name)}
    if missing - head or unknown - head - useless:
        raise misfit(folder, missing - head, unknown - head - useless, "classification")
    if useless:
        log(f"weights that this task has no use for, not taken over: {some(useless)}")
    if fresh:
        draw_head(found, seed)
        log(f"new head: {some(head)}, uniform between ±1 / sqrt(width)")
    return found.train()


def _settings(config: Mapping[str, Any]) -> Any:
    """transformers' configuration of an image classifier."""
    from transformers import AutoModelForImageClassification
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING or CONFIG_MAPPING[kind] not in AutoModelForImageClassification._model_mapping:
        raise UserError(
            f"config.json: transformers has no image classifier of model_type {kind!r}",
            "choose another model; code that comes with weights is never run",
        )
    return CONFIG_MAPPING[kind].from_dict(dict(config))


def _own(files: Sequence[Path], config: Mapping[str, Any], fresh: bool) -> tuple[Network, set[str], set[str]]:
    """(the network, names of missing and of unknown weights); `fresh`: whatever the files have for a head is not looked at."""
    with torch.device("meta"), Undrawn():  # nothing is allocated before it is known that the files fit
        network = _build(config)
    wanted, head = network.state_dict(), _head(network) if fresh else set()
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    found, unknown = read_weights(files, lambda names: {n: n for n in names}, shapes, head, torch.float32)
    # batch norm counts in whole numbers
    state = {name: tensor.to(wanted[name].dtype) for name, tensor in found.items()}
    network.load_state_dict(state | {name: torch.empty(shapes[name]) for name in head}, strict=False, assign=True)
    return network, wanted.keys() - found.keys(), unknown


def _through_transformers(folder: Path, settings: Any, fresh: bool, seed: int) -> tuple[Network, set[str], set[str]]:
    """As `_own`, by transformers."""
    from transformers import AutoModelForImageClassification

    found, report = opened(AutoModelForImageClassification, folder, settings, torch.float32, seed, True)
    for part in (*found.parameters(), *found.buffers()):
        part.data = part.data.clone()  # out of the file, which may be replaced meanwhile
    network = Transformers(found)
    head = _head(network) if fresh else set()
    wrong = [
        f"{name} is {list(shape)}, expected {list(wanted)}"
        for name, shape, wanted in sorted(report["mismatched_keys"])
        if name not in head
    ]
    if wrong:
        raise unfit(folder, wrong)
    return network, set(report["missing_keys"]), set(report["unexpected_keys"])
