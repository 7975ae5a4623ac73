"""A person's own network: found, tried, wrapped, written and read; what is wrong with it is said in words."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from danlu.core.errors import UserError
from danlu.models import own, pretrained, vision
from danlu.models.initialise import initialise
from danlu.tasks.supervised import Classification


LABELS = ["a", "b", "c"]
CONFIG = vision.describe("my_net:build", channels=1, size=8, labels=LABELS)
IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Parts under names that a wrapper may have too, running statistics, a weight in two places, a frozen layer."""

    def __init__(self, channels, size, labels):
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.config = nn.Linear(4 * (size - 2) ** 2, 6)
        self.module = nn.Linear(6, 6)
        self.head = nn.Linear(6, labels)
        self.again = nn.Linear(6, 6)
        self.again.weight = self.module.weight
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, images):
        if self.training:
            self.seen += len(images)
        x = self.again(self.module(self.config(self.network(images).flatten(1)))) * self.scale
        return self.head(x)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """`written(text)`: a module of that text in the current folder, imported anew; returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    made = []

    def write(text, name="theirs_of_a_test"):
        (tmp_path / f"{name}.py").write_text(text)
        made.append(name)
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


def test_weights_have_the_names_they_have_there_and_come_back(tmp_path):
    model = own.make(CONFIG, Net, 0).train()
    logits = model.logits(model(IMAGES))
    assert logits.shape == (4, 3)
    model.eval()
    pretrained.save(model, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    theirs = Net(1, 8, 3)
    missing, unknown = theirs.load_state_dict(saved, strict=False)
    assert not unknown and missing == ["again.weight"]  # which is module.weight, written once
    again = vision.load(tmp_path, network=Net, log=lambda _: None).eval()
    assert int(again.seen) == 4 and again.seen.dtype == torch.int64
    expected = model(IMAGES)
    assert torch.equal(again(IMAGES), expected)
    assert torch.equal(theirs.eval()(IMAGES), expected)


def test_a_seed_decides_all_that_is_drawn():
    class Draws(Net):
        def __init__(self, *given):
            super().__init__(*given)
            import random

            import numpy as np

            self.scale.data.fill_(random.random() + np.random.rand())  # noqa: NPY002

    one, two, other = (own.make(CONFIG, Draws, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["scale"], other["scale"])


def test_a_checkpoint_holds_what_does_not_learn():
    model = own.make(CONFIG, Net, 0)
    kept = Classification(model, None).state_dict()
    assert {"seen", "scale", "network.1.running_mean", "network.1.num_batches_tracked"} <= kept.keys()


def test_other_labels_give_a_new_head_and_keep_the_rest(tmp_path):
    pretrained.save(own.make(CONFIG, Net, 0), tmp_path)
    said = []
    model = vision.load(tmp_path, labels=["x", "y"], new_head=True, seed=1, network=Net, log=said.append)
    assert said == ["new head: head.bias, head.weight, drawn as " + Net.__qualname__ + " draws it"]
    old = load_file(tmp_path / "model.safetensors")
    weights = dict(model.named_parameters())
    assert torch.equal(weights["config.weight"], old["config.weight"])
    assert weights["head.weight"].shape == (2, 6)


def test_weights_of_another_network_are_named(tmp_path):
    pretrained.save(own.make(CONFIG, Net, 0), tmp_path)
    with pytest.raises(UserError, match=r"config.weight is torch.float32 \[6, 144\], expected none") as found:
        vision.load(tmp_path, network=lambda *g: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), log=lambda _: None)
    assert "1.weight is missing, expected torch.float32 [3, 64]" in str(found.value)


@pytest.mark.parametrize(
    ("text", "path", "told"),
    [
        ("build = 3", "build", "of type int, expected a function or class"),
        ("from torch import nn\nbuild = nn.Linear(2, 2)", "build", "a network already made"),
        ("def build(*a): ...", "biuld", "did you mean 'build'"),
        ("import no_such_package_at_all\n", "build", "No module named 'no_such_package_at_all'"),
        ("def build(c, s, n):\n    return 1 / 0", "build", "ZeroDivisionError"),
        ("def build(c, s): ...", "build", "TypeError"),
        ("def build(c, s, n): return 'net'", "build", "returns str, expected a torch.nn.Module"),
        ("def build(:", "build", "SyntaxError"),
    ],
)
def test_what_is_wrong_with_the_code_is_told_with_its_place(written, text, path, told):
    name = written(text)
    with pytest.raises(UserError, match=told) as found:
        own.make(CONFIG, f"{name}:{path}", 0)
    if "ZeroDivision" in told:
        assert f"{name}.py:2" in str(found.value)


def test_a_module_that_is_not_there_names_those_that_are(written):
    written("", "theirs_of_a_test")
    with pytest.raises(UserError, match=r"neither installed nor in .*\n.*did you mean 'theirs_of_a_test'"):
        own.find("their_of_a_test:build", "")
    with pytest.raises(UserError, match="expected module:object"):
        own.find("theirs_of_a_test", "")


def flat(out, last=None):
    """A network of one layer, [n, 1, 8, 8] -> [n, out]."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, out), *([last] if last else []))


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda c, s, n: flat(7), r"\[2, 1, 8, 8\] and 3 labels it gives torch.float32 \[2, 7\], expected floats \[2, 3\]"),
        (lambda c, s, n: nn.Flatten(), r"no parameters"),
        (lambda c, s, n: flat(n, nn.Softmax(-1)), "expected logits"),
        (lambda c, s, n: nn.Sequential(nn.Flatten(), nn.Linear(99, n)), "RuntimeError: mat1 and mat2"),
    ],
)  # fmt: skip
def test_a_network_is_tried_before_it_is_trained(build, told):
    with pytest.raises(UserError, match=told):
        own.make(CONFIG, build, 0)


def test_layers_that_find_their_shape_themselves_are_found_before_training():
    model = own.make(CONFIG, lambda c, s, n: nn.Sequential(nn.Flatten(), nn.LazyLinear(n)), 0)
    assert {name: list(each.shape) for name, each in model.named_parameters()} == {"1.weight": [3, 64], "1.bias": [3]}


def test_what_a_state_dict_cannot_hold_is_refused():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = flat(3)

        def forward(self, images):
            return self.layer(images)

        def get_extra_state(self):
            return {"count": 3}

    with pytest.raises(UserError, match=r"keeps 0._extra_state, which is no tensor"):
        own.make(CONFIG, lambda *_: nn.Sequential(Counts()), 0)


def test_code_for_a_network_that_needs_none_is_refused(tmp_path):
    config = vision.describe("mlp", channels=1, size=8, labels=LABELS)
    pretrained.save(vision.from_config(config), tmp_path)
    with pytest.raises(UserError, match="but the network is a danlu_mlp"):
        vision.load(tmp_path, network=Net)


@pytest.fixture
def keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    import keras

    return keras


@pytest.mark.parametrize("order", ["channels_last", "channels_first"])
def test_keras_gives_what_keras_gives_and_names_its_weights_alike_each_time(keras, order, tmp_path):
    def build(channels, size, labels):
        layers, last = keras.layers, order == "channels_last"
        parts = [
            keras.Input((size, size, channels) if last else (channels, size, size)),
            layers.Conv2D(4, 3, data_format=order),
            layers.BatchNormalization(axis=-1 if last else 1),
            layers.Flatten(data_format=order),
            layers.Dropout(0.5, seed=1),
            layers.Dense(labels),
        ]
        return keras.Sequential(parts)

    model = own.make({**CONFIG, "num_channels": 2}, build, 0)
    with pytest.raises(UserError, match="nothing to draw"):
        initialise(model, "orthogonal", 0)
    images = torch.randn(4, 2, 8, 8)
    given = images.permute(0, 2, 3, 1) if order == "channels_last" else images
    assert torch.equal(model(images), model.module.model(given, training=False))
    model.train()
    states = [model.state_dict()[name].clone() for name in model.state_dict() if "seed" in name]
    assert not torch.equal(model(images), model(images))  # dropout
    remembered = Classification(model, None).state_dict()
    moved = [remembered[name] for name in remembered if "seed" in name]
    assert len(moved) == 1 and not torch.equal(moved[0], states[0])
    pretrained.save(model.eval(), tmp_path)
    again = vision.load(tmp_path, network=build, log=lambda _: None).eval()
    assert torch.equal(again(images), model(images))
    assert set(load_file(tmp_path / "model.safetensors")) == set(own.make(again.config, build, 1).state_dict())
