"""Images of any size and mode -> the numbers a network sees, and back; the same in training, evaluation and service."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from danlu.core.cache import read_text
from danlu.core.errors import UserError, nearest, reading
from danlu.data.images import MAX_PIXELS, Survey, decode


if TYPE_CHECKING:
    import PIL.Image
    import torch

FILE = "preprocessor_config.json"
RULES = ("squash", "crop", "pad")
SCALES = {"unit": (0.0, 1.0), "symmetric": (0.5, 0.5)}
"""Fixed mean and standard deviation: pixels in [0, 1], or in [-1, 1]."""
LARGEST = 4096
WARPED = 384
"""From this size on ConvNextImageProcessor squashes, whatever crop_pct says."""
DEFAULTS: dict[str, dict[str, Any]] = {  # what transformers takes for keys that are not in the file
    "ViT": {"size": {"height": 224, "width": 224}, "resample": 2},
    "ConvNext": {"size": {"shortest_edge": 384}, "resample": 3, "crop_pct": 0.875},
}


@dataclass(frozen=True)
class Processor:
    """How an image becomes [channels, size, size].

    mean, std: of pixels in 0..1, one a channel. resample: Pillow's number (2 bilinear, 3 bicubic).
    resize: `squash` to the square whatever the shape; `crop`, the shorter edge to size / crop_pct and then the centre; `pad`, the
    longer edge to size and black at the right and the bottom. With `pad` the mean is 0, so that the border is 0 in the network as
    it is in transformers, which pads behind the normalisation.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str = "squash"
    crop_pct: float = 0.875
    resample: int = 2

    def __post_init__(self) -> None:
        numbers = len(self.mean) == len(self.std) == self.channels and all(map(math.isfinite, self.mean + self.std))
        wrong = {
            f"resize={self.resize}, expected {', '.join(RULES)}": self.resize not in RULES,
            f"{self.channels} channels, expected 1 or 3": self.channels not in (1, 3),
            f"size={self.size}, expected 1 to {LARGEST}": not 1 <= self.size <= LARGEST,
            f"size={self.size}, expected at most {WARPED - 1} with crop": self.resize == "crop" and self.size >= WARPED,
            f"crop_pct={self.crop_pct}, expected above 0, at most 1": not 0 < self.crop_pct <= 1,
            f"resample={self.resample}, expected 0 to 5": self.resample not in range(6),
            f"mean={self.mean}, std={self.std}, expected {self.channels} each": not numbers or min(self.std) <= 0,
            f"mean={self.mean}, expected 0 with pad": self.resize == "pad" and any(self.mean),
        }
        if any(wrong.values()):
            raise UserError(f"images: found {next(key for key, each in wrong.items() if each)}", "change that setting")

    @classmethod
    def of(
        cls,
        survey: Survey,
        *,
        size: int | None = None,
        channels: int | None = None,
        resize: str = "squash",
        scale: str = "unit",
    ) -> Processor:
        """From the headers of the data. size, channels: None to derive them. scale: `unit` or `symmetric`; `fit` measures it."""
        channels = channels or (1 if survey.gray == survey.images else 3)
        if scale not in SCALES:
            raise UserError(f"images: found scale={scale}", nearest(scale, SCALES))
        mean, std = SCALES[scale]
        return cls(size or usual_size(survey)[0], channels, (mean,) * channels, (std,) * channels, resize)

    def fit(self, pixels: np.ndarray, rows: Sequence[int] | np.ndarray | None = None) -> Processor:
        """The same with mean and standard deviation of these training images, uint8 [n, channels, size, size].

        Exact: the 256 values of each channel are counted. A channel of one single value is left unscaled.
        """
        counts = np.zeros((self.channels, 256), np.int64)
        chosen = np.arange(len(pixels)) if rows is None else np.asarray(rows, np.int64)
        for part in np.array_split(chosen, max(1, len(chosen) // 64)):
            for channel in range(self.channels):
                counts[channel] += np.bincount(pixels[part, channel].ravel(), minlength=256)
        mean, std = [], []
        for each in counts.tolist():
            total = sum(each)
            first = 0 if self.resize == "pad" else sum(value * count for value, count in enumerate(each))
            second = sum(value * value * count for value, count in enumerate(each))
            mean.append(first / total / 255)
            std.append(math.sqrt(second * total - first * first) / total / 255 or 1.0)
        return replace(self, mean=tuple(mean), std=tuple(std))

    # ------------------------------------------------------------------------------------------------------- forwards

    def prepare(
        self, values: Sequence[Any], places: Sequence[str], still: Callable[[], None] = lambda: None
    ) -> np.ndarray:
        """Images of any kind `decode` knows -> uint8 [n, channels, size, size]. places: what errors call them. still: called
        before each; may raise."""
        pixels = np.empty((len(values), self.channels, self.size, self.size), np.uint8)
        for row, (value, place) in enumerate(zip(values, places, strict=True)):
            still()
            image = self._resized(decode(value, place).convert("L" if self.channels == 1 else "RGB"), place)
            pixels[row] = np.asarray(image).reshape(self.size, self.size, self.channels).transpose(2, 0, 1)
        return pixels

    def _resized(self, image: PIL.Image.Image, place: str) -> PIL.Image.Image:
        """Rounded as transformers rounds, so that a folder means the same in both."""
        width, height = image.size
        to = (self.size, self.size)
        if self.resize == "crop":
            short = int(self.size / self.crop_pct)
            to = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        elif self.resize == "pad":
            scale = min(self.size / height, self.size / width)
            to = (max(1, int(width * scale)), max(1, int(height * scale)))
        if math.prod(to) > MAX_PIXELS:
            raise UserError(
                f"{place}: {width} x {height} pixels is too long a strip to be cropped", "cut it, or resize=squash"
            )
        if to != image.size:
            image = image.resize(to, self.resample)
        if image.size == (self.size, self.size):
            return image
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        if self.resize == "pad":
            left = top = 0
        return image.crop((left, top, left + self.size, top + self.size))  # what lies outside is black

    def normalise(self, pixels: np.ndarray) -> torch.Tensor:
        """uint8 [n, channels, size, size] -> float32, (pixel / 255 - mean) / std."""
        import torch

        mean, std = (torch.tensor(each, dtype=torch.float32).view(-1, 1, 1) for each in (self.mean, self.std))
        return torch.from_numpy(np.ascontiguousarray(pixels)).to(torch.float32).mul_(1 / 255).sub_(mean).div_(std)

    def shown(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised float32 [n, channels, size, size] -> the same in 0..1; what lies outside is cut."""
        mean, std = (images.new_tensor(each).view(-1, 1, 1) for each in (self.mean, self.std))
        return images.mul(std).add_(mean).clamp_(0, 1)

    def restore(self, images: torch.Tensor) -> np.ndarray:
        """The way back, for showing: normalised float32 [n, channels, size, size] -> uint8."""
        pixels: np.ndarray = self.shown(images.detach()).mul_(255).round_().byte().cpu().numpy()
        return pixels

    # ---------------------------------------------------------------------------------------------------------- files

    def save(self, folder: Path) -> None:
        """`preprocessor_config.json` in the layout of transformers' ViTImageProcessor, or ConvNextImageProcessor for `crop`."""
        square = {"height": self.size, "width": self.size}
        config: dict[str, Any] = {
            "image_processor_type": f"{'ConvNext' if self.resize == 'crop' else 'ViT'}ImageProcessor",
            "do_convert_rgb": self.channels == 3,
            "do_resize": True,
            "size": square,
            "resample": self.resample,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": self.mean,
            "image_std": self.std,
        }
        if self.resize == "crop":
            config |= {"size": {"shortest_edge": self.size}, "crop_pct": self.crop_pct}
        elif self.resize == "pad":
            config |= {"size": {"max_height": self.size, "max_width": self.size}, "do_pad": True, "pad_size": square}
        (folder / FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: Path) -> Processor:
        """The processor of a folder, ours or another's, applied as transformers does. Raises UserError for what is not known here."""
        if not (folder / FILE).is_file():
            raise UserError(
                f"{folder}: there is no {FILE}, which says how images are prepared for the model",
                "copy it from where the model came from",
            )
        with reading(folder):
            config = json.loads(read_text(folder / FILE))
            named = config.get("image_processor_type") or config.get("feature_extractor_type")
            if named is None:  # older files leave it to the model's type
                kind = json.loads(read_text(folder / "config.json"))["model_type"]
                named = "ViT" if kind == "vit" else "ConvNext" if kind in ("resnet", "convnext", "convnextv2") else kind
            kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", named)
            if kind not in DEFAULTS:
                raise UserError(
                    f"{folder / FILE}: found {named}, expected a ViT or ConvNext image processor", "use another model"
                )
            return cls._from(DEFAULTS[kind] | config, kind, folder / FILE)

    @classmethod
    def _from(cls, config: dict[str, Any], kind: str, file: Path) -> Processor:
        size = config["size"]
        if not isinstance(size, dict):
            size = {"shortest_edge": size} if kind == "ConvNext" else {"height": size, "width": size}
        side, pads = int(next(iter(size.values()))), bool(config.get("do_pad"))
        rules = {
            ("ViT", "height width", False): "squash",
            ("ViT", "max_height max_width", True): "pad",
            ("ConvNext", "shortest_edge", False): "crop",
        }
        rule = rules.get((kind, " ".join(sorted(size)), pads))
        square = set(size.values()) == {side} and (
            not pads or config.get("pad_size") == {"height": side, "width": side}
        )
        if rule is None or not square or config.get("do_center_crop") or not config.get("do_resize", True):
            keys = ("size", "do_resize", "do_center_crop", "do_pad", "pad_size")
            found = {key: config[key] for key in keys if key in config}
            raise UserError(f"{file}: found {found}, expected images resized to one square", "use another model")
        if rule == "crop" and side >= WARPED:
            rule = "squash"
        mean, std = (config.get(key, (0.5, 0.5, 0.5)) for key in ("image_mean", "image_std"))
        mean, std = (
            tuple(map(float, each)) if isinstance(each, (list, tuple)) else (float(each),) * 3 for each in (mean, std)
        )
        if not config.get("do_normalize", True):
            mean, std = (0.0,) * len(mean), (1.0,) * len(mean)
        # (x f - mean) / std with another factor than 1 / 255 is (x / 255 - mean / 255 f) / (std / 255 f)
        factor = 255 * float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 255.0
        return cls(
            side,
            len(mean),
            tuple(each / factor for each in mean),
            tuple(each / factor for each in std),
            rule,
            float(config.get("crop_pct") or 0.875),
            int(config["resample"]),
        )


def usual_size(survey: Survey) -> tuple[int, str]:
    """(side of the square, why): the median of the shorter edges, a multiple of 4 and at most 224."""
    edges = sorted(map(min, survey.sizes.elements()))
    edge = edges[(len(edges) - 1) // 2]
    why = (
        f"the shorter edge of the images is {edge} pixels"
        if edges[0] == edges[-1]
        else f"the shorter edge is {edge} pixels in the median"
    )
    return min(224, max(4, (edge + 2) // 4 * 4)), why + ("; 224 is the most unless asked" if edge > 225 else "")


class Augment:
    """Random changes to a normalised batch, on its way into training only. All randomness is torch's global generator.

    crop: 60 to 100 % of the area at 3:4 to 4:3, resized back. flip: mirrored left to right, every second image.
    rotate: by up to 15 degrees. colour: brightness and contrast by up to 20 %, and of colour images saturation by 20 % and hue by
    2 % of the circle. erase: a rectangle of 2 to 20 % of the area turned black, in every fourth image.
    """

    NAMES = ("crop", "flip", "rotate", "colour", "erase")

    @classmethod
    def check(cls, names: tuple[str, ...]) -> None:
        """Raises UserError for a name that is none of ours."""
        if unknown := [name for name in names if name not in cls.NAMES]:
            raise UserError(f"augment: found {unknown[0]!r}", nearest(unknown[0], cls.NAMES))

    def __init__(self, names: tuple[str, ...], processor: Processor) -> None:
        self.check(names)
        try:
            import kornia.augmentation as kornia
        except ImportError:
            raise UserError("augment: it needs the package kornia", "pip install 'danlu[images]'") from None
        self.processor = processor
        square, hue = (processor.size, processor.size), (0.2, 0.02) if processor.channels == 3 else (0.0, 0.0)
        made = {
            "crop": lambda: kornia.RandomResizedCrop(square, scale=(0.6, 1.0), ratio=(3 / 4, 4 / 3)),
            "flip": lambda: kornia.RandomHorizontalFlip(p=0.5),
            "rotate": lambda: kornia.RandomRotation(15.0, p=1.0),
            "colour": lambda: kornia.ColorJitter(0.2, 0.2, *hue, p=1.0),
            "erase": lambda: kornia.RandomErasing(scale=(0.02, 0.2), p=0.25),
        }
        self.steps = [made[name]() for name in self.NAMES if name in names]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """float32 [n, channels, size, size], normalised before and after."""
        import torch

        with torch.no_grad():
            mean, std = (images.new_tensor(each).view(-1, 1, 1) for each in (self.processor.mean, self.processor.std))
            shown = self.processor.shown(images)
            for step in self.steps:
                shown = step(shown)
            return shown.clamp_(0, 1).sub_(mean).div_(std)
