"""A person's own network: what `build(channels, size, labels)` returns, an nn.Module or a Keras model on its torch backend; for running text
see `own_text.py`.

Code is only ever taken from the command or call of the moment. What a run says of it is words, and nothing of a run is imported.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from danlu.core.errors import UserError, nearest
from danlu.models.base import Log
from danlu.models.folder import label_keys, labels_of, some, weight_files
from danlu.models.initialise import seeded
from danlu.models.options import CODE
from danlu.models.vision import Network


Code = str | Callable[..., Any]
"""`module:object`, or the function or class itself: (channels, size, labels) -> network, or (vocabulary, context) -> network."""
BUILD = "def build(channels, size, labels): …  # an nn.Module from [n, channels, size, size] to logits [n, labels]"


def find(code: Code | None, said: Any, example: str = BUILD) -> tuple[str, Callable[..., Any]]:
    """(its name, what makes the network). A name is imported, from the current folder too, as `python -m` would.

    said: what a run or a file says of it; only shown. example: how one is written.

    Raises:
        UserError: there is no code, no such module or object, importing it fails, or it makes no network.
    """
    if code is None:
        raise UserError(
            f"the network is a person's own ({said}), and code that a run or a file names is never run",
            "give the code in this command, if you trust it: network=module:object",
        )
    found: Any
    name, found = (code, None) if isinstance(code, str) else (getattr(code, "__qualname__", "the network"), code)
    if isinstance(code, str):
        if not CODE.fullmatch(code):
            raise UserError(f"network={code}, expected module:object", "for example network=my_net:build")
        module, _, path = code.partition(":")
        if not {"", here := str(Path.cwd())} & set(sys.path):
            sys.path.insert(0, here)
        os.environ.setdefault("KERAS_BACKEND", "torch")
        importlib.invalidate_caches()
        with theirs(code):
            try:
                found = importlib.import_module(module)
            except ModuleNotFoundError as error:
                if not f"{module}.".startswith(f"{error.name}."):
                    raise  # the module is there, and one that it imports is not
                local = sorted(
                    {each.stem for each in Path().glob("*.py")} | {p.parent.name for p in Path().glob("*/__init__.py")}
                )
                fix = nearest(module, local) if local else f"write {module}.py there"
                raise UserError(f"{code}: no module {module}, neither installed nor in {here}", fix) from None
        for part in path.split("."):
            if not hasattr(found, part):
                names = [each for each in dir(found) if each[0] != "_"]
                raise UserError(f"{code}: {module} has no {part}", nearest(part, names) if names else example)
            found = getattr(found, part)
    if isinstance(found, nn.Module) or not callable(found):
        what = "a network already made" if isinstance(found, nn.Module) else f"of type {type(found).__name__}"
        raise UserError(f"{name} is {what}, expected a function or class that makes a network", example)
    return name, found


@contextmanager
def theirs(name: str) -> Iterator[None]:
    """What goes wrong in a person's own code is told with its file and line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        others = ("site-packages", "<frozen", str(Path(__file__).parents[1]), str(Path(os.__file__).parent))
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{each.filename}:{each.lineno}" for each in frames if not any(o in each.filename for o in others)]
        fix = f"look at {places[-1] if places else 'its code'}; --debug shows all of it"
        raise UserError(f"{name}: {type(error).__name__}: {str(error)[:500]}", fix) from error


class Theirs(nn.Module):
    """A person's network under the names its weights have there."""

    module: Any
    name: str

    def take_over(self, module: nn.Module, name: str) -> None:
        """Its parts become ours, in the same dictionaries."""
        # `network`, which is asked for when saving, may be a part of theirs
        self.__dict__ |= {"module": module, "name": name, "network": None}
        for key in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            self.__dict__[key] = module.__dict__[key]
        if lost := [key for key, value in super().state_dict().items() if not isinstance(value, Tensor)]:
            raise UserError(f"{name} keeps {lost[0]}, which is no tensor", "keep it in a buffer: register_buffer")

    @property
    def frozen(self) -> set[str]:
        """Weights that do not learn; a checkpoint holds them too, since only a person's code could make them again."""
        return {name for name, parameter in self.named_parameters() if not parameter.requires_grad}

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.module.train(mode)
        return self

    def state_dict(self, *args: Any, **settings: Any) -> dict[str, Any]:  # type: ignore[override]
        """Each tensor once: a weight that stands in two places has one name."""
        names = dict(self.named_parameters()).keys() | dict(self.named_buffers()).keys()
        return {name: tensor for name, tensor in super().state_dict(*args, **settings).items() if name in names}


def computed(network: Theirs, inputs: Tensor, asked: str, expected: list[int], example: str) -> Tensor:
    """What a person's network makes of the inputs. asked: these in words. expected: a shape. example: how one is written.

    Raises:
        UserError: it fails, or gives something else than floats of that shape.
    """
    with theirs(network.name):
        made = network.module(inputs)
    is_tensor = isinstance(made, Tensor)
    if not is_tensor or list(made.shape) != expected or not made.is_floating_point():
        found = f"{made.dtype} {list(made.shape)}" if is_tensor else f"a {type(made).__name__}"
        raise UserError(f"{network.name}: for {asked} it gives {found}, expected floats {expected}", example)
    return cast(Tensor, made)


class Own(Theirs, Network):
    """A person's network of images; what it returns are the logits already."""

    head = None

    def __init__(self, config: Mapping[str, Any], module: nn.Module, name: str) -> None:
        super().__init__(config)
        del self.config["architectures"]  # transformers has none of it
        self.labels = len(labels_of(self.config) or ())
        self.take_over(module, name)

    def body(self, images: Tensor) -> Tensor:
        """[n, channels, size, size] -> [n, labels]"""
        asked = f"images {list(images.shape)} and {self.labels} labels"
        return computed(self, images, asked, [len(images), self.labels], BUILD)

    def logits(self, features: Tensor) -> Tensor:
        """They are that already."""
        return features


def checked(module: Any, name: str, example: str) -> nn.Module:
    """What their code made.

    Raises:
        UserError: it is no module, or nothing in it learns.
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"{name} returns {type(module).__name__}, expected a torch.nn.Module", example)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UserError(f"{name}: the network has no parameters that learn", "see requires_grad")
    return module


def make(config: Mapping[str, Any], code: Code | None, seed: int) -> Own:
    """The network that `code` builds for a config.json; what it draws depends on the seed alone. Tried on two images of noise.

    Raises:
        UserError: there is no code, it fails, or what it makes is not what can be trained here.
    """
    if "num_channels" not in config:
        raise UserError(f"{config.get('code')} is a network of texts", "danlu pretrain gpt")
    name, build = find(code, config.get("code"))
    channels, size, labels = config["num_channels"], config["image_size"], len(labels_of(dict(config)) or ())
    with seeded(seed):
        with theirs(name):
            if keras := sys.modules.get("keras"):
                keras.utils.clear_session(free_memory=False)  # or the second network's weights had other names
            module: Any = build(channels, size, labels)
            keras = sys.modules.get("keras")
            if keras and isinstance(module, keras.Model):
                module = OnTorch(module, channels, size)
        network = Own(config, checked(module, name, BUILD), name).eval()
        with torch.no_grad():
            tried = network(torch.randn(2, channels, size, size).to(next(network.parameters()).device))
    if tried.min() >= 0 and (tried.sum(1) - 1).abs().max() < 1e-4:
        raise UserError(f"{name} gives probabilities (rows sum to 1), expected logits", "leave out its softmax")
    return network


def load(folder: Path, config: Mapping[str, Any], code: Code | None, seed: int, fresh: bool, log: Log) -> Own:
    """The network with the weights in `folder`. fresh: the weights whose shape depends on the number of labels are as built.

    Raises:
        UserError: as `make`; or the weights are of another network.
    """
    network, head = make(config, code, seed), set[str]()
    if fresh:
        wanted = network.state_dict()
        more = make({**config, **label_keys([*(labels_of(dict(config)) or ()), "one more"])}, code, seed).state_dict()
        head = {name for name in wanted if name not in more or more[name].shape != wanted[name].shape}
        log(f"new head: {some(head)}, drawn as {network.name} draws it")
    fill(network, folder, head)
    return network


def fill(network: Theirs, folder: Path, head: Set[str] = frozenset()) -> None:
    """The weights in `folder`, but for those of a new `head`.

    Raises:
        UserError: they are of another network.
    """
    from safetensors.torch import load_file

    wanted, found = network.state_dict(), dict[str, Tensor]()
    for file in weight_files(folder):
        found |= load_file(file)
    has, needs = (
        {n: f"{t.dtype} {list(t.shape)}" for n, t in each.items() if n not in head} for each in (found, wanted)
    )
    names = {name for name in has.keys() | needs.keys() if has.get(name) != needs.get(name)}
    if wrong := {f"{name} is {has.get(name, 'missing')}, expected {needs.get(name, 'none')}" for name in names}:
        raise UserError(f"{folder} does not fit {network.name}: {some(wrong)}", "give the code it was trained with")
    network.load_state_dict({name: found[name] for name in wanted.keys() - head}, strict=False)


class OnTorch(nn.Module):
    """A Keras model as torch sees networks. What it learns are parameters; all else it keeps, the states of its random seeds and
    running statistics among it, are buffers. Keras writes into both in place."""

    model: Any
    order: tuple[int, ...]

    def __init__(self, model: Any, channels: int, size: int) -> None:
        super().__init__()
        keras = sys.modules["keras"]
        if (backend := keras.backend.backend()) != "torch":
            raise UserError(f"Keras computes with {backend}, expected torch", "export KERAS_BACKEND=torch")
        shape = getattr(model, "input_shape", None)
        last = keras.config.image_data_format() == "channels_last" if not shape else shape[-1] == channels
        self.__dict__ |= {"model": model, "order": (0, 2, 3, 1) if last else (0, 1, 2, 3)}
        if not model.built:
            self(torch.zeros(1, channels, size, size))
        for variable in model.variables:
            name, keep = variable.path.replace(".", "_"), variable.trainable
            (self.register_parameter if keep else self.register_buffer)(name, variable.value)

    def forward(self, images: Tensor) -> Any:
        """[n, channels, size, size] -> [n, labels]"""
        return self.model(images.permute(self.order), training=self.training)
