"""Networks for images: what they are made of, what they share with transformers and torchvision, and every way a folder can be wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from danlu.core.errors import UserError
from danlu.models.pretrained import save
from danlu.models.vision import ARCHITECTURES, Network, describe, from_config, load


LABELS = ["a", "b", "c"]
LABEL_FREE = ("autoencoder", "gan")
SMALL = {
    "mlp": describe("mlp", channels=1, size=28, labels=LABELS, hidden=(16, 8), dropout=0.3),
    "vgg": describe("vgg11_bn", channels=1, size=28, labels=LABELS)
    | {"depths": [1, 2], "hidden_sizes": [4, 8], "classifier_size": 16},
    "resnet": describe("resnet18", channels=1, size=28, labels=LABELS)
    | {"depths": [1, 2], "hidden_sizes": [8, 16], "embedding_size": 8},
    "vit": describe("vit", channels=1, size=28, labels=LABELS, depth=2, dropout=0.3),
}
"""One of each kind, as small as the kind allows."""
KINDS = pytest.mark.parametrize("kind", SMALL)


def silent(line: str) -> None:
    pass


def images(config: dict[str, Any], n: int = 5) -> Tensor:
    size = config["image_size"]
    return torch.randn(n, config["num_channels"], size, size, generator=torch.Generator().manual_seed(0))


def logits(network: Network, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network.logits(network.eval()(x))


def equal(one: nn.Module, other: nn.Module) -> bool:
    """Bitwise, in name, order, type and value."""
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def count(name: str, labels: int, **choices: Any) -> int:
    with torch.device("meta"):
        network = from_config(describe(name, labels=[str(n) for n in range(labels)], **choices))
    return sum(parameter.numel() for parameter in network.parameters())


def rewrite(folder: Path, **changed: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


# --------------------------------------------------------------------------------------------------------- descriptions


def test_parameters_of_the_networks_people_know() -> None:
    assert count("mlp", 10, channels=1, size=28, hidden=(64, 64)) == 55_050
    assert count("mlp", 10, channels=1, size=28, hidden=(128,), dropout=0.5) == 101_770
    published = {
        "vgg11": 132_863_336,
        "vgg11_bn": 132_868_840,
        "vgg13": 133_047_848,
        "vgg13_bn": 133_053_736,
        "vgg16": 138_357_544,
        "vgg16_bn": 138_365_992,
        "resnet18": 11_689_512,
        "resnet34": 21_797_672,
        "resnet50": 25_557_032,
        "vit-tiny": 5_717_416,
        "vit-small": 22_050_664,
        "vit-base": 86_567_656,
    }
    assert {name: count(name, 1000, channels=3, size=224) for name in published} == published


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_takes_images_of_any_size(name: str) -> None:
    for channels, size in ((1, 8), (3, 28), (1, 29), (3, 96)):
        labels = () if name in LABEL_FREE else LABELS
        with torch.device("meta"):
            network = from_config(describe(name, channels=channels, size=size, labels=labels))
            features = network(torch.empty(2, channels, size, size))
        assert features.ndim == 2 and len(features) == 2
        if labels:
            assert network.logits(features).shape == (2, 3)
        assert (network.config["num_channels"], network.config["image_size"]) == (channels, size)


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        ("resnet19", {}, r"model=resnet19: no such architecture[\s\S]*did you mean 'resnet18'"),
        ("resnet18", {"size": 7}, r"images of 7 pixels a side, expected at least 8"),
        ("resnet18", {"hidden": (3,)}, r"hidden=\(3,\): resnet18 does not read it"),
        ("vit", {"activation": "tanh", "code": 3}, r"activation=tanh, code=3: vit does not read it"),
        ("mlp", {"depth": 3}, r"depth=3: mlp does not read it"),
        ("autoencoder", {"hidden": (3,)}, r"a convolutional autoencoder does not read it[\s\S]*convolutional=no"),
        ("resnet18", {"dropout": 0.1}, r"dropout=0.1: resnet has none"),
    ],
)
def test_a_choice_that_would_be_ignored_is_an_error(name: str, choices: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        describe(name, **{"channels": 1, "size": 28} | choices)


def test_patches_divide_the_image() -> None:
    found = {size: describe("vit", channels=1, size=size)["patch_size"] for size in (8, 28, 29, 32, 64, 96, 224, 384)}
    assert found == {8: 2, 28: 4, 29: 4, 32: 4, 64: 8, 96: 12, 224: 16, 384: 16}


def test_a_description_is_json_and_dropout_goes_wherever_there_is_one() -> None:
    for config in SMALL.values():
        assert json.loads(json.dumps(config)) == config
    vit = SMALL["vit"]
    assert vit["hidden_dropout_prob"] == vit["attention_probs_dropout_prob"] == 0.3
    assert [part.p for part in from_config(SMALL["vgg"]).modules() if isinstance(part, nn.Dropout)] == [0.5, 0.5]


# ------------------------------------------------------------------------------------------------------------- networks


def test_a_perceptron_is_its_formula() -> None:
    by_hand = {"relu": F.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "gelu": F.gelu}
    for name, function in by_hand.items():
        config = describe("mlp", channels=3, size=8, labels=LABELS, hidden=(16, 8), activation=name, dropout=0.5)
        w = (network := from_config(config)).state_dict()
        x = images(config).flatten(1)
        for layer in ("layers.0", "layers.1"):
            x = function(x @ w[f"{layer}.weight"].T + w[f"{layer}.bias"])
        expected = x @ w["classifier.weight"].T + w["classifier.bias"]
        torch.testing.assert_close(logits(network, images(config)), expected)


VGG_CONVOLUTIONS = {
    "vgg11": (0, 3, 6, 8, 11, 13, 16, 18),
    "vgg11_bn": (0, 4, 8, 11, 15, 18, 22, 25),
    "vgg13": (0, 2, 5, 7, 10, 12, 15, 17, 20, 22),
    "vgg13_bn": (0, 3, 7, 10, 14, 17, 21, 24, 28, 31),
    "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "vgg16_bn": (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40),
}
"""torchvision's numbers of the convolutions."""
VGG_WIDTHS = {
    "vgg11": (64, 128, 256, 256, 512, 512, 512, 512),
    "vgg13": (64, 64, 128, 128, 256, 256, 512, 512, 512, 512),
    "vgg16": (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
}


def torchvision_shapes(name: str, channels: int, pooled: int, inner: int, labels: int) -> dict[str, tuple[int, ...]]:
    """torchvision's state dict of a VGG."""
    shapes: dict[str, tuple[int, ...]] = {}
    before = channels
    for number, width in zip(VGG_CONVOLUTIONS[name], VGG_WIDTHS[name.removesuffix("_bn")], strict=True):
        shapes |= {f"features.{number}.weight": (width, before, 3, 3), f"features.{number}.bias": (width,)}
        if name.endswith("_bn"):
            norm = f"features.{number + 1}"
            shapes |= {f"{norm}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
            shapes[f"{norm}.num_batches_tracked"] = ()
        before = width
    for number, wide, narrow in ((0, inner, 512 * pooled**2), (3, inner, inner), (6, labels, inner)):
        shapes |= {f"classifier.{number}.weight": (wide, narrow), f"classifier.{number}.bias": (wide,)}
    return shapes


@pytest.mark.parametrize("name", VGG_CONVOLUTIONS)
def test_vgg_has_torchvisions_names_and_shapes(name: str) -> None:
    for size, pooled, inner in ((224, 7, 4096), (28, 1, 512)):
        with torch.device("meta"):
            network = from_config(describe(name, channels=3, size=size, labels=LABELS))
        found = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        assert list(found.items()) == list(torchvision_shapes(name, 3, pooled, inner, 3).items())


@pytest.mark.parametrize("name", ["vgg11", "vgg13_bn"])
def test_a_torchvision_state_dict_loads_and_computes_what_it_does_there(name: str, tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in torchvision_shapes(name, 3, 2, 512, 3).items():
        scale = math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.1
        state[key] = torch.randn(shape, generator=rng) * scale + ("running_var" in key)
        if "num_batches" in key:
            state[key] = torch.tensor(3)
    save_file(state, tmp_path / "model.safetensors")
    config = describe(name, channels=3, size=64, labels=LABELS)
    (tmp_path / "config.json").write_text(json.dumps(config))
    network = load(tmp_path, log=silent)
    assert {key: value.dtype for key, value in network.state_dict().items()} == {k: v.dtype for k, v in state.items()}
    x = images(config, 2)
    pool_after = {"vgg11": (0, 3, 8, 13, 18), "vgg13_bn": (3, 10, 17, 24, 31)}[name]
    for number in VGG_CONVOLUTIONS[name]:
        x = F.conv2d(x, state[f"features.{number}.weight"], state[f"features.{number}.bias"], padding=1)
        if name.endswith("_bn"):
            parts = ("running_mean", "running_var", "weight", "bias")
            x = F.batch_norm(x, *(state[f"features.{number + 1}.{part}"] for part in parts))
        x = F.relu(x)
        x = F.max_pool2d(x, 2) if number in pool_after else x
    x = x.flatten(1)  # of 64 pixels 2 are left: there is nothing to pool to 2
    for number in (0, 3):
        x = F.relu(F.linear(x, state[f"classifier.{number}.weight"], state[f"classifier.{number}.bias"]))
    x = F.linear(x, state["classifier.6.weight"], state["classifier.6.bias"])
    torch.testing.assert_close(logits(network, images(config, 2)), x, rtol=1e-4, atol=1e-5)


@KINDS
def test_evaluation_mode_is_evaluation_mode(kind: str) -> None:
    network = from_config(SMALL[kind])
    x = images(SMALL[kind])
    assert network.training
    if kind in ("mlp", "vgg", "vit"):
        assert not torch.equal(network(x), network(x))  # dropout
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network(x)
    moved = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert {key.rsplit(".", 1)[1] for key in moved} == (
        {"running_mean", "running_var", "num_batches_tracked"} if kind in ("vgg", "resnet") else set()
    )
    network.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert torch.equal(network(x), network(x))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    each = torch.cat([network(image[None]) for image in x])
    torch.testing.assert_close(network(x), each, rtol=1e-4, atol=1e-5)  # nobody's answer depends on the others


@KINDS
def test_one_image_can_be_learned_from(kind: str) -> None:
    """A window may end in a single image, and a ResNet's last map of 28 pixels is a single one."""
    config = SMALL[kind] | ({"depths": [1] * 4, "hidden_sizes": [8] * 4} if kind == "resnet" else {})
    network = from_config(config)
    found = network.logits(network(images(config, 1)))
    assert found.shape == (1, 3)
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@KINDS
def test_weights_depend_on_the_seed_alone(kind: str) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = from_config(SMALL[kind], seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert equal(first, from_config(SMALL[kind], seed=1))
    assert not equal(first, from_config(SMALL[kind], seed=2))


@KINDS
def test_weights_start_at_the_scale_their_source_says(kind: str) -> None:
    weights = {k: v for k, v in from_config(SMALL[kind]).state_dict().items() if v.ndim > 1}
    first = next(k for k, v in weights.items() if v.numel() > 50 and "token" not in k and "position" not in k)
    shape = weights[first].shape
    inputs, outputs = math.prod(shape[1:]), shape[0] * math.prod(shape[2:])
    wanted = {"mlp": 2 / inputs, "vgg": 2 / inputs, "resnet": 2 / outputs, "vit": 0.02**2}[kind]
    assert weights[first].square().mean().item() == pytest.approx(wanted, rel=0.5 if kind == "vgg" else 0.15)
    head = list(weights)[-1]
    assert weights[head].abs().max() <= weights[head].shape[1] ** -0.5
    sigmoid = from_config(describe("mlp", channels=1, size=28, labels=LABELS, activation="sigmoid")).state_dict()
    assert sigmoid["layers.0.weight"].abs().max().item() == pytest.approx(math.sqrt(6 / (784 + 128)), rel=0.01)


# ---------------------------------------------------------------------------------------------------------- transformers


def of_transformers(kind: str) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    if kind == "resnet":
        settings: Any = transformers.ResNetConfig(
            num_channels=1, depths=[1, 2], hidden_sizes=[8, 16], embedding_size=8, layer_type="basic", num_labels=3
        )
        network: nn.Module = transformers.ResNetForImageClassification(settings)
        network(torch.randn(8, 1, 28, 28))  # so that the running statistics say something
    elif kind == "vit":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        settings = transformers.ViTConfig(**sizes, image_size=28, patch_size=7, num_channels=1, num_labels=3)
        network = transformers.ViTForImageClassification(settings)
    elif kind == "convnext":
        settings = transformers.ConvNextConfig(
            num_channels=1, num_stages=2, depths=[1, 1], hidden_sizes=[8, 16], image_size=28, num_labels=3
        )
        network = transformers.ConvNextForImageClassification(settings)
    else:
        sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 7, "patch_size": 2}
        settings = transformers.SwinConfig(**sizes, image_size=28, num_channels=1, num_labels=3)
        network = transformers.SwinForImageClassification(settings)
    return network.eval()


def theirs(network: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(pixel_values=x).logits


@pytest.mark.parametrize("kind", ["resnet", "vit", "convnext", "swin"])
def test_a_folder_of_transformers_is_read(kind: str, tmp_path: Path) -> None:
    network = of_transformers(kind)
    network.save_pretrained(tmp_path)  # type: ignore[operator]
    read = load(tmp_path, log=pytest.fail)
    assert equal(read, network)
    assert read.config["image_size"] == (224 if kind == "resnet" else 28)
    x = torch.randn(4, 1, 28, 28)
    assert torch.equal(logits(read, x), theirs(network, x))


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_transformers_reads_our_folder(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    network = from_config(SMALL[kind])
    x = images(SMALL[kind])
    network(x)
    save(network, tmp_path)
    read, report = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(logits(network, x), theirs(read, x))
    assert read.config.id2label == dict(enumerate(LABELS))
    assert equal(load(tmp_path, log=pytest.fail), network)
    assert load(tmp_path).config["image_size"] == 28


def test_weights_stay_when_their_file_is_replaced(tmp_path: Path) -> None:
    for kind, config in SMALL.items():
        save(from_config(config, seed=1), tmp_path / kind)
        network = load(tmp_path / kind)
        size = (path := tmp_path / kind / "model.safetensors").stat().st_size
        with path.open("r+b") as file:
            file.seek(size // 4)
            file.write(bytes(size // 2))
        assert equal(network, from_config(config, seed=1))


# ------------------------------------------------------------------------------------------------------ heads and folders


@KINDS
def test_saved_and_loaded_is_bitwise_the_same(kind: str, tmp_path: Path) -> None:
    network = from_config(SMALL[kind])
    network(images(SMALL[kind]))
    save(network, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    read = load(tmp_path, labels=LABELS, log=pytest.fail)
    assert equal(read, network) and read.training
    assert torch.equal(logits(read, images(SMALL[kind])), logits(network, images(SMALL[kind])))
    assert read.config["id2label"] in ({"0": "a", "1": "b", "2": "c"}, dict(enumerate(LABELS)))


@KINDS
@pytest.mark.parametrize(("labels", "new_head"), [(["x", "y"], False), (["c", "b", "a"], False), (LABELS, True)])
def test_a_new_head_changes_the_head_alone(kind: str, labels: list[str], new_head: bool, tmp_path: Path) -> None:
    save(network := from_config(SMALL[kind], seed=3), tmp_path)
    said: list[str] = []
    first, again, other = (
        load(tmp_path, labels=labels, new_head=new_head, seed=seed, log=said.append) for seed in (1, 1, 2)
    )
    assert len(said) == 3 and said[0].startswith(f"new head: {first.head}.bias, {first.head}.weight")
    assert equal(first, again) and not equal(first, other)
    new, old = first.state_dict(), network.state_dict()
    changed = {name for name in new if not torch.equal(new[name], old[name])}
    assert changed == {f"{first.head}.weight", f"{first.head}.bias"}
    assert logits(first, images(SMALL[kind])).shape == (5, len(labels))
    assert list(first.config["id2label"].values()) == labels
    random = from_config(
        network.config, labels=labels, seed=1
    )  # what pretraining is compared with starts from the same head
    assert all(torch.equal(random.state_dict()[name], new[name]) for name in changed)
    save(first, tmp_path / "again")
    assert equal(load(tmp_path / "again", log=pytest.fail), first)


def test_dropout_is_the_folders_or_ours(tmp_path: Path) -> None:
    for kind in ("mlp", "vit"):
        save(from_config(SMALL[kind]), tmp_path / kind)
        for asked, found in ((None, 0.3), (0.0, 0.0), (0.4, 0.4)):
            network = load(tmp_path / kind, dropout=asked)
            assert {part.p for part in network.modules() if isinstance(part, nn.Dropout)} == {found}
    save(from_config(SMALL["resnet"]), tmp_path / "resnet")
    with pytest.raises(UserError, match=r"dropout=0.1: resnet has none"):
        load(tmp_path / "resnet", dropout=0.1)


@KINDS
@pytest.mark.parametrize("labels", [LABELS, ["x", "y"]])
def test_weights_that_do_not_fit_are_named(kind: str, labels: list[str], tmp_path: Path) -> None:
    """Also with a new head, for which a weight of the body must not pass unseen."""
    save(from_config(SMALL[kind]), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    name = next(key for key, value in whole.items() if value.ndim > 1 and "classifier" not in key)

    def expect(state: dict[str, Tensor], message: str) -> None:
        save_file(state, path, {"format": "pt"})
        with pytest.raises(UserError, match=message):
            load(tmp_path, labels=labels, log=silent)

    known = "vit.encoder.layer.0" if kind == "vit" else name  # transformers has other names on the disk than in memory
    lacking = {k: v for k, v in whole.items() if not k.startswith(known)}
    expect(lacking, rf"does not fit its config\.json: it lacks {'vit.layers.0' if kind == 'vit' else name}")
    expect(whole | {"mystery.weight": torch.ones(2)}, r"it has the unknown mystery\.weight")
    expect(whole | {name: torch.ones(2, 2)}, rf"1 weights do not fit config\.json: {name} is \[2, 2\], expected")
    save_file(whole, path, {"format": "pt"})
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"damaged|cannot be read as a model"):
        load(tmp_path, labels=labels, log=silent)


def test_a_body_without_a_head_needs_labels(tmp_path: Path) -> None:
    import transformers

    network = of_transformers("vit")
    transformers.ViTModel(network.config).save_pretrained(tmp_path)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"lacks classifier.bias, classifier.weight[\s\S]*give labels"):
        load(tmp_path, log=silent)
    said: list[str] = []
    assert logits(load(tmp_path, labels=LABELS, log=said.append), torch.randn(2, 1, 28, 28)).shape == (2, 3)
    assert [line.split(":")[0] for line in said] == [
        "weights that this task has no use for, not taken over",
        "new head",
    ]
    assert "pooler" in said[0]


def test_folders_that_are_no_image_classifier(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoModel": "mine.Model"}}))
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="a pickle, which can run code"):
        load(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    for kind in ("mine", "gpt2", None):
        rewrite(tmp_path, model_type=kind)
        with pytest.raises(UserError, match=f"transformers has no image classifier of model_type {kind!r}"):
            load(tmp_path)


def test_a_config_that_says_nonsense_is_one_clear_error(tmp_path: Path) -> None:
    save(from_config(SMALL["mlp"]), tmp_path)
    for changed, message in (
        ({"hidden_sizes": "many"}, "cannot be read as a model"),
        ({"activation": "cosine"}, "cannot be read as a model: KeyError"),
        ({"id2label": {"x": "a"}}, "cannot be read as a model"),
        ({"hidden_sizes": [1_000_000_000, 1_000_000_000]}, "weights do not fit"),  # nothing of that size is allocated
    ):
        rewrite(tmp_path, **{**SMALL["mlp"], **changed})
        with pytest.raises(UserError, match=message):
            load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("vgg", {"depths": [1, 10**12]}, r"config\.json: depths is .*, but the weights are \d+ tensors"),
        ("vit", {"num_hidden_layers": 10**9}, r"config\.json: num_hidden_layers is 1000000000, but the weights are"),
        ("vit", {"intermediate_size": 10**12}, r"asks for a network of [\d,]{16,} parameters, and the weights hold \d"),
        ("resnet", {"hidden_sizes": [8, 10**6]}, "asks for a network of"),
    ],
)
def test_a_config_far_larger_than_its_weights_is_refused(kind, changed, message, tmp_path) -> None:
    save(from_config(SMALL[kind]), tmp_path)
    rewrite(tmp_path, **{**SMALL[kind], **changed})
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_random_weights_the_machine_cannot_train_are_refused() -> None:
    config = describe("mlp", channels=1, size=8, labels=LABELS, hidden=[65_536] * 400)
    with pytest.raises(
        UserError, match=r"takes 27,\d+ GB to train \(16 bytes each\), and this machine has \d+"
    ) as caught:
        from_config(config)
    assert "parameters fit" in caught.value.fix


def test_images_that_are_not_square_are_refused(tmp_path: Path) -> None:
    network = of_transformers("vit")
    network.save_pretrained(tmp_path)  # type: ignore[operator]
    rewrite(tmp_path, image_size=[28, 28])
    assert load(tmp_path).config["image_size"] == 28
    rewrite(tmp_path, image_size=[14, 56])
    with pytest.raises(UserError, match=r"image_size is \[14, 56\], expected a square"):
        load(tmp_path)


def test_an_architecture_that_ends_in_two_layers_is_refused(tmp_path: Path) -> None:
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    settings = transformers.DeiTConfig(**sizes, image_size=28, patch_size=7)
    transformers.DeiTForImageClassificationWithTeacher(settings).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"ends in 2 linear layers \(cls_classifier, distillation_classifier\)"):
        load(tmp_path)
