"""Preparing images: equal to transformers' own processors, exact figures, and a way back; random changes from one generator."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from transformers import AutoImageProcessor
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from danlu.core.errors import UserError
from danlu.data.images import read_images, survey
from danlu.data.processor import FILE, RULES, Augment, Processor, usual_size


CHINA, FLOWER = load_sample_images().images  # [427, 640, 3]
PHOTOS = [CHINA, np.ascontiguousarray(FLOWER[:, :200]), CHINA[:50, :37], FLOWER[:97, :97]]
DIGITS = (load_digits().images * 255 / 16).round().astype(np.uint8)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALVES = (0.5,) * 3, (0.5,) * 3


def ours(processor: Processor, photos=PHOTOS) -> np.ndarray:
    return processor.normalise(processor.prepare(photos, [f"photo {n}" for n in range(len(photos))])).numpy()


def theirs(folder, photos=PHOTOS) -> np.ndarray:
    processor = AutoImageProcessor.from_pretrained(folder)
    return processor([Image.fromarray(photo) for photo in photos], return_tensors="np")["pixel_values"]


def written(folder, **config):
    (folder / FILE).write_text(json.dumps(config))
    return folder


def sized(*sizes, mode="L"):
    return survey(read_images([{"image": Image.new(mode, size)} for size in sizes], labelled=False))


# ---------------------------------------------------------------------------------------------------------- transformers


@pytest.mark.parametrize("size", [24, 97, 224])
@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("rule", RULES)
def test_a_folder_of_ours_means_the_same_in_transformers(tmp_path, rule, resample, size):
    mean, std = ((0.0,) * 3, IMAGENET[1]) if rule == "pad" else IMAGENET
    processor = Processor(size, 3, mean, std, rule, 0.9 if rule == "crop" else 0.875, resample)
    processor.save(tmp_path)
    expected = ViTImageProcessorPil if rule != "crop" else ConvNextImageProcessorPil
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is expected
    assert np.allclose(ours(processor), theirs(tmp_path), atol=2e-6)
    assert Processor.load(tmp_path) == processor


def test_gray_and_transparent_images_mean_the_same_in_transformers(tmp_path):
    processor = Processor(32, 3, *IMAGENET)
    processor.save(tmp_path)
    alpha = np.dstack([CHINA, np.arange(640, dtype=np.uint16).clip(0, 255).astype(np.uint8)[None].repeat(427, 0)])
    for photo in (CHINA[..., 0], alpha):
        assert np.allclose(ours(processor, [photo]), theirs(tmp_path, [photo]), atol=2e-6)
    gray = Processor(20, 1, (0.3,), (0.2,), "crop")
    gray.save(tmp_path)
    assert np.allclose(ours(gray, [CHINA[..., 0]]), theirs(tmp_path, [CHINA[..., 0]]), atol=2e-6)


FOREIGN = {
    "resnet": {
        "crop_pct": 0.875, "do_normalize": True, "do_resize": True, "feature_extractor_type": "ConvNextFeatureExtractor",
        "image_mean": IMAGENET[0], "image_std": IMAGENET[1], "resample": 3, "size": 224,
    },
    "a newer resnet": {
        "crop_pct": 0.875, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": IMAGENET[0],
        "image_processor_type": "ConvNextImageProcessor", "image_std": IMAGENET[1], "resample": 2,
        "rescale_factor": 1 / 255, "size": {"shortest_edge": 160},
    },
    "convnext at 384": {"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.95, "size": 384},
    "all defaults": {"image_processor_type": "ConvNextImageProcessor"},
    "vit": {"do_normalize": True, "do_resize": True, "image_mean": HALVES[0], "image_std": HALVES[1], "size": 224,
            "image_processor_type": "ViTImageProcessor"},
    "vit, fast": {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 96, "width": 96}, "resample": 3},
    "vit, symmetric by its factor": {"image_processor_type": "ViTImageProcessor", "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3,
                                     "image_std": [1.0] * 3},
    "not normalised": {"image_processor_type": "ViTImageProcessor", "do_normalize": False},
    "not rescaled": {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "image_mean": [127.5] * 3,
                     "image_std": [50.0] * 3},
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_folder_is_applied_as_transformers_does(tmp_path, name):
    processor = Processor.load(written(tmp_path, **FOREIGN[name]))
    assert np.allclose(ours(processor), theirs(tmp_path), atol=5e-6)


def test_an_old_folder_leaves_its_type_to_the_model(tmp_path):
    written(tmp_path, do_normalize=True, image_mean=HALVES[0], image_std=HALVES[1], size=48)
    for kind, rule in (("vit", "squash"), ("resnet", "crop")):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        processor = Processor.load(tmp_path)
        assert (processor.resize, processor.size) == (rule, 48)
        assert np.allclose(ours(processor), theirs(tmp_path), atol=2e-6)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "found CLIPImageProcessor, expected a ViT or ConvNext"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"height": 20, "width": 30}}, "one square"),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": False}, "'do_resize': False"),
        ({"image_processor_type": "ViTImageProcessor", "do_center_crop": True}, "'do_center_crop': True"),
        ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, "'do_pad': True"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 20}}, "'shortest_edge': 20"),
        ({"image_processor_type": "ViTImageProcessor", "image_std": [0, 1, 1]}, "std=(0.0, 1.0, 1.0)"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [0.5, 0.5]}, "2 channels, expected 1 or 3"),
        ({"image_processor_type": "ViTImageProcessor", "size": 10**9}, "size=1000000000, expected 1 to 4096"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 9}, "resample=9"),
        ({"image_processor_type": 5}, "cannot be read as a model"),
        ({}, "cannot be read as a model"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_understood(tmp_path, config, said):
    with pytest.raises(UserError) as caught:
        Processor.load(written(tmp_path, **config))
    assert said in caught.value.message and caught.value.fix


def test_a_folder_without_a_processor_or_with_a_broken_one(tmp_path):
    with pytest.raises(UserError, match=f"there is no {FILE}"):
        Processor.load(tmp_path)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(UserError, match="cannot be read as a model"):
        Processor.load(tmp_path)


# --------------------------------------------------------------------------------------------------------------- deriving


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ([(28, 28)], 28),
        ([(8, 8)] * 3, 8),
        ([(640, 427)] * 3, 224),
        ([(33, 99)], 32),
        ([(1, 1)], 4),
        ([(16, 16), *[(300 + n, 80 + n) for n in range(4)]], 80),
        ([(100, 62), (62, 100), (20, 20)], 64),
    ],
)
def test_the_size_is_the_median_of_the_shorter_edges(sizes, side):
    assert usual_size(sized(*sizes))[0] == side


def test_why_that_size():
    assert usual_size(sized((28, 28)))[1] == "the shorter edge of the images is 28 pixels"
    assert usual_size(sized((28, 28), (900, 900), (900, 900)))[1] == (
        "the shorter edge is 900 pixels in the median; 224 is the most unless asked"
    )


def test_one_channel_only_if_every_image_is_gray():
    gray = sized((8, 8), (8, 8))
    mixed = survey(read_images([{"image": DIGITS[0]}, {"image": CHINA}], labelled=False))
    assert Processor.of(gray) == Processor(8, 1, (0.0,), (1.0,))
    assert Processor.of(gray, channels=3, size=20, scale="symmetric", resize="crop") == Processor(
        20, 3, *HALVES, "crop"
    )
    assert Processor.of(mixed).channels == 3
    with pytest.raises(UserError, match="did you mean 'symmetric'"):
        Processor.of(gray, scale="symetric")


@pytest.mark.parametrize(
    "wrong",
    [{"resize": "stretch"}, {"size": 0}, {"channels": 2}, {"crop_pct": 0.0}, {"resize": "crop", "size": 384},
     {"std": (0.0,)}, {"mean": (float("nan"),)}, {"mean": (0.5,), "resize": "pad"}, {"resample": 7}],
)  # fmt: skip
def test_settings_that_cannot_be(wrong):
    with pytest.raises(UserError, match=r"images: found .*expected"):
        replace(Processor(8, 1, (0.0,), (1.0,)), **wrong)


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_deviation_of_the_training_images(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (201, channels, 6, 6)).astype(np.uint8)
    pixels[:, 0] //= 3
    fitted = Processor(6, channels, (0.0,) * channels, (1.0,) * channels).fit(pixels, range(150))
    wanted = pixels[:150].astype(np.float64) / 255
    assert np.allclose(fitted.mean, wanted.mean((0, 2, 3)), rtol=1e-12)
    assert np.allclose(fitted.std, wanted.std((0, 2, 3)), rtol=1e-12)
    normal = fitted.normalise(pixels[:150])
    assert torch.allclose(normal.mean((0, 2, 3)), torch.zeros(channels), atol=1e-5)
    assert torch.allclose(normal.std((0, 2, 3), correction=0), torch.ones(channels), atol=1e-5)
    assert fitted.fit(pixels) == fitted.fit(pixels[::-1])


def test_padded_images_keep_a_border_of_zero():
    fitted = Processor(6, 1, (0.0,), (1.0,), "pad").fit(DIGITS[:9, None, :6, :6])
    assert fitted.mean == (0.0,)
    assert np.allclose(fitted.std, np.sqrt(((DIGITS[:9, :6, :6] / 255) ** 2).mean()))
    assert (ours(fitted, [np.full((3, 6), 200, np.uint8)])[0, 0, 3:] == 0).all()


def test_a_channel_of_one_value_is_left_unscaled():
    assert Processor(2, 1, (0.0,), (1.0,)).fit(np.full((3, 1, 2, 2), 51, np.uint8)) == Processor(2, 1, (0.2,), (1.0,))


# ---------------------------------------------------------------------------------------------------- there and back


def test_images_of_the_right_size_are_left_alone():
    for rule in ("squash", "pad"):
        processor = Processor(8, 1, (0.0,), (1.0,), rule)
        assert np.array_equal(processor.prepare(list(DIGITS[:50]), ["a"] * 50)[:, 0], DIGITS[:50])


def test_every_value_comes_back():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(256, 3, 1, 1)
    for mean, std in (IMAGENET, HALVES, ((0.13,) * 3, (0.0021,) * 3)):
        processor = Processor(1, 3, mean, std)
        assert np.array_equal(processor.restore(processor.normalise(pixels)), pixels)
    assert processor.restore(torch.tensor([9e9, -9e9, 0.0]).reshape(1, 3, 1, 1)).ravel().tolist() == [255, 0, 33]


def test_gray_and_colour_are_converted():
    gray = Processor(427, 1, (0.0,), (1.0,)).prepare([CHINA], ["a"])
    assert np.array_equal(gray[0, 0], np.asarray(Image.fromarray(CHINA).convert("L").resize((427, 427), 2)))
    colour = Processor(8, 3, *HALVES).prepare([DIGITS[0]], ["a"])
    assert np.array_equal(colour[0], np.stack([DIGITS[0]] * 3))


def test_a_strip_is_refused_and_not_stretched_into_gigabytes():
    strip = np.zeros((1, 2_000_000), np.uint8)
    with pytest.raises(UserError, match="strip: 2000000 x 1 pixels is too long a strip"):
        Processor(224, 1, (0.0,), (1.0,), "crop").prepare([strip], ["strip"])
    for rule in ("squash", "pad"):
        assert Processor(8, 1, (0.0,), (1.0,), rule).prepare([strip], ["strip"]).shape == (1, 1, 8, 8)


# -------------------------------------------------------------------------------------------------------------- augmenting


def batch(channels: int) -> tuple[Processor, torch.Tensor]:
    processor = Processor(32, channels, (0.4,) * channels, (0.25,) * channels)
    photos = [CHINA[n * 20 :, n * 30 :] for n in range(16)]
    return processor, processor.normalise(processor.prepare(photos, [""] * 16))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("names", [(name,) for name in Augment.NAMES] + [Augment.NAMES])
def test_the_same_seed_gives_the_same_changes(names, channels):
    processor, images = batch(channels)
    augment, given = Augment(names, processor), images.clone()
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002 (the global one, which must stay)
    torch.manual_seed(3)
    one, other = augment(images), augment(images)
    torch.manual_seed(3)
    assert torch.equal(one, augment(images))
    assert not torch.equal(one, other)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    assert torch.equal(images, given)
    assert one.shape == images.shape and one.dtype == torch.float32
    shown = processor.shown(one)
    assert torch.allclose(processor.normalise(processor.restore(one)), one, atol=0.5 / 255 / 0.25 + 1e-5)  # within 0..1
    assert 0.05 < shown.mean() < 0.95


def test_each_change_is_what_it_says():
    processor, images = batch(3)
    torch.manual_seed(0)
    flipped = Augment(("flip",), processor)(images)
    turned = [torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(flipped, images, strict=True)]
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(flipped, images, strict=True)]
    assert 0 < sum(turned) < 16 and sum(turned) + sum(same) == 16
    erased = Augment(("erase",), processor)(images)
    black = processor.shown(erased).sum(1) == 0  # [n, h, w]
    assert 0 < (black.sum((1, 2)) > 12).sum() < 16
    assert torch.allclose(erased.permute(0, 2, 3, 1)[~black], images.permute(0, 2, 3, 1)[~black], atol=1e-5)
    grays = Processor(32, 3, (0.4,) * 3, (0.25,) * 3).prepare([CHINA[..., 0]] * 16, [""] * 16)
    coloured = Augment(("colour",), processor)(processor.normalise(grays))
    assert (coloured - processor.normalise(grays)).abs().mean((1, 2, 3)).min() > 0.001
    corner = torch.zeros(16, 1, 32, 32)
    rotated = Augment(("rotate",), Processor(32, 1, (0.0,), (1.0,)))(corner + 1)
    assert (rotated[:, 0, 0, 0] < 0.5).any() and torch.allclose(rotated[:, 0, 14:18, 14:18], torch.ones(16, 4, 4))
    ramp = torch.linspace(0, 1, 32).expand(16, 1, 32, 32)
    cropped = Augment(("crop",), Processor(32, 1, (0.0,), (1.0,)))(ramp)
    width = cropped[:, 0, 0, -1] - cropped[:, 0, 0, 0]  # of what is seen, as a share
    assert (width > 0.6).all() and (width < 0.99).any()


def test_brightness_and_contrast_change_by_a_fifth_at_most():
    processor = Processor(8, 1, (0.0,), (1.0,))
    torch.manual_seed(0)
    changed = Augment(("colour",), processor)(torch.full((500, 1, 8, 8), 0.5))[:, 0, 0, 0]
    assert 0.4 - 1e-5 <= changed.min() < 0.42 and 0.58 < changed.max() <= 0.6 + 1e-5


def test_no_such_change():
    with pytest.raises(UserError, match="did you mean 'colour'"):
        Augment(("flip", "color"), batch(1)[0])


def test_kornia_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    with pytest.raises(UserError) as caught:
        Augment(("flip",), batch(1)[0])
    assert caught.value.fix == "pip install 'danlu[images]'"
