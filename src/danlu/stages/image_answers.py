"""A trained model of images: its answers, labels or images, and its figures on rows it never learned from."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from danlu.core.errors import UserError, reading
from danlu.core.run import Run
from danlu.core.types import Examples
from danlu.data.images import read_images
from danlu.data.pictures import Pictures
from danlu.data.processor import Processor
from danlu.data.rows import FileRow
from danlu.evaluation import baselines, metrics
from danlu.evaluation.classification import beside, named, right_and_wrong
from danlu.evaluation.compare import compare
from danlu.models import vision
from danlu.models.folder import labels_of
from danlu.stages.load import sealed
from danlu.stages.prepare import Prepared, Say
from danlu.stages.samples import SHOWN, grid_of, png, tiled
from danlu.stages.text_answers import say_learned
from danlu.tasks.generative import Autoencoding
from danlu.training.hooks import measure


BATCH = 64
"""Images in one forward pass where nothing is learned; fixed, so that a figure never depends on a setting of training."""
MOST_ALIKE = 10
"""Fewer held-out images than this have no spread that a generator could be compared with."""


# --------------------------------------------------------------------------------------------------------------- answer


@dataclass(frozen=True)
class Opened:
    """A run's final network of images, in evaluation mode, ready to answer."""

    run: Run
    model: Any
    processor: Processor
    task: str
    labels: tuple[str, ...]
    precision: torch.dtype
    kind: str = "image"

    def __call__(self, inputs: Sequence[Any], still: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
        """A label with probabilities, or the error of the reconstruction, for each image: a path, bytes, an array or a PIL image."""
        places = [str(each) if isinstance(each, (str, Path)) else f"image {n}" for n, each in enumerate(inputs, 1)]
        rows = self.pictures(inputs, places, still)
        if self.task == "autoencoder":
            errors = squares(self, rows, still) / rows.pixels[0].size
            answers = [{"mse": round(float(error), 8)} for error in errors]
        else:
            answers = named(probabilities(self.model, rows, self.precision, still), self.labels)
        return [{"input": place, **answer} for place, answer in zip(places, answers, strict=True)]

    def pictures(
        self, inputs: Sequence[Any], places: Sequence[str], still: Callable[[], None] = lambda: None
    ) -> Pictures:
        """Inputs as the network sees them. places: what they are called in an error."""
        pixels = self.processor.prepare(list(inputs), places, still)
        return Pictures.of(pixels, range(len(pixels)), [-1] * len(pixels), self.processor)


def answering(run: Run, network: Any = None) -> Opened:
    """The final network of a run, which is what the service asks too. network: the code of a person's own.

    Raises:
        UserError: the run has none yet, or it has changed since it was written.
    """
    sealed(run)
    facts, used = run.read("run.json"), run.settings()
    torch.set_num_threads(int(used["threads"] or 1))
    labels = tuple(facts.get("labels") or ())
    with reading(run.model):
        model = vision.load(run.model, log=lambda _: None, network=network)
        processor = Processor.load(run.model)
    if (found := tuple(labels_of(model.config) or ())) != labels:
        raise UserError(
            f"{run.path}: run.json has the labels {', '.join(labels)}, the model {', '.join(found)}",
            "restore the folder from a copy of the run",
        )
    model.requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return Opened(run, model, processor, facts["task"], labels, getattr(torch, used["precision"]))


def batches(rows: Pictures, still: Callable[[], None]) -> Iterator[Examples]:
    """All the rows, in the order they have."""
    for start in range(0, len(rows), BATCH):
        still()
        yield rows.batch(range(start, min(start + BATCH, len(rows))))


@torch.inference_mode()
def probabilities(
    model: Any, rows: Pictures, precision: torch.dtype, still: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Softmax of the logits, float32 [rows, labels]; the model is in evaluation mode."""
    device, found = next(model.parameters()).device, []
    for batch in batches(rows, still):
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits = model.logits(model(batch.inputs.to(device)))
        found.append(logits.float().softmax(-1).cpu().numpy())
    return np.concatenate(found)


def squares(opened: Opened, rows: Pictures, still: Callable[[], None] = lambda: None) -> np.ndarray:
    """Summed squared error of each image and its reconstruction, [rows]."""
    measures = Autoencoding(opened.model).measures
    found = (measure(opened.model, measures, [batch], opened.precision)["loss"][0] for batch in batches(rows, still))
    return torch.cat(list(found)).numpy()


def predict(
    run: Run,
    inputs: Sequence[Any] | None,
    data: Any = None,
    out: str | None = None,
    count: int = 64,
    seed: int = 0,
    network: Any = None,
) -> list[dict[str, Any]]:
    """Answers for images. A generator takes none: it writes `count` new ones as a grid to `out`; an autoencoder writes
    originals over reconstructions there."""
    task = run.read("run.json")["task"]
    if (seed or count != 64) and task != "gan":
        raise UserError(
            f"count= and seed= are for images that a GAN makes, and {run.path} is of {task}", "leave them out"
        )
    if out is not None and (Path(out).exists() or not Path(out).parent.is_dir()):
        there = "is there already" if Path(out).exists() else "lies in a folder that is not there"
        raise UserError(f"out={out} {there}", "name a new file, such as out=new.png")
    opened = answering(run, network)
    if opened.task == "gan":
        if inputs is not None or data is not None:
            raise UserError(f"{run.path} makes images, it takes none", f"danlu predict {run.path} out=new.png count=64")
        if out is None:
            raise UserError("expected out=FILE.png for the generated images", f"danlu predict {run.path} out=new.png")
        made = generated(opened, count, seed)
        columns = math.isqrt(count - 1) + 1
        padded = np.concatenate([made, np.full((-count % columns, *made.shape[1:]), 255, np.uint8)])
        Path(out).write_bytes(png(tiled(padded.reshape(-1, columns, *made.shape[1:]))))
        return [{"input": f"{count} draws of noise, seed {seed}", "answer": out}]
    asked = list(one_or_more(inputs))
    if data is not None:
        read = read_images(data, labelled=False).rows
        by_name = sorted(read, key=lambda row: row.place if isinstance(row, FileRow) else "")
        asked = [row.values["image"] for row in by_name]
    if not asked:
        raise UserError("nothing to answer", "name image files, or data=FOLDER")
    for each in asked:
        if isinstance(each, (str, Path)) and not Path(each).is_file():
            what = "is a folder" if Path(each).is_dir() else "is not there"
            raise UserError(f"{each} {what}, expected an image file", f"danlu predict {run.path} IMAGE… | data=FOLDER")
    found = opened(asked)
    if out is not None:
        if opened.task != "autoencoder":
            raise UserError(f"out={out}: a classifier has no image to write", "leave out= away")
        rows = opened.pictures(asked[:SHOWN], [str(each) for each in asked[:SHOWN]])
        Path(out).write_bytes(png(tiled(grid_of(opened.model, rows, 0.0))))
    return found


def one_or_more(inputs: Any) -> Sequence[Any]:
    """A path, a PIL image or an array of one image is one input; a list, or an array of several, is several."""
    if inputs is None:
        return ()
    shape: Sequence[int] = getattr(inputs, "shape", ())
    one = len(shape) == 2 or (
        len(shape) == 3 and shape[-1] in (3, 4)
    )  # an image of 3 or 4 columns would be taken for colours
    return (inputs,) if one or isinstance(inputs, (str, Path, bytes)) or hasattr(inputs, "getpixel") else inputs


@torch.inference_mode()
def generated(opened: Opened, count: int, seed: int) -> np.ndarray:
    """New images: uint8 [count, channels, side, side]."""
    if not 1 <= count <= 10_000:
        raise UserError(f"count={count}, expected 1 to 10,000", "count=64")
    device, rng = next(opened.model.parameters()).device, torch.Generator().manual_seed(seed)
    codes = torch.randn(count, opened.model.config["code"], generator=rng)
    made = [opened.model.generator(piece.to(device)).float() for piece in codes.split(BATCH)]
    return opened.processor.restore(torch.cat(made))


# ------------------------------------------------------------------------------------------------------------- evaluate


def evaluate(run: Run, data: Any, say: Say, label: str | None = None, network: Any = None) -> dict[str, Any]:
    """Figures of a finished run on its own test images, or on `data`."""
    opened = answering(run, network)
    own, labelled = data is None, opened.task == "image-classification"
    if label is not None and (own or not labelled):
        raise UserError(f"label={label}, but no labels of a file are read here", "leave it out, or give data=FILE")
    if own and not (run.path / "data" / "test.npz").is_file():
        raise UserError(f"{run.path} kept no test rows", "give data=")
    used = run.settings()
    columns = {} if own else {"image": used["image"], "label": label or used["label"]}
    source = read_images(run.path / "data" / "test.npz" if own else data, labelled=labelled, **columns)
    # What the run kept has gone through its processor already: of that size, nothing is cut off again.
    processor = replace(opened.processor, resize="squash") if own else opened.processor
    rows, rejected = Pictures.read(source, processor)
    if labelled:
        taught = {row.number: str(row.values["label"]) for row in source.rows}
        if alien := sorted(set(taught.values()) - set(opened.labels)):
            raise UserError(
                f"{source.name}: label {alien[0]!r} is not known to the model", f"it knows {', '.join(opened.labels)}"
            )
        targets = [opened.labels.index(taught[number]) for number in rows.numbers.tolist()]
        rows = replace(rows, targets=np.array(targets, np.int64))
    say(f"{len(rows)} images of {source.name} ({source.format})")
    if not own:
        say_learned(run, rows.keys(), "images", say)
    dropped = [{"reason": each.reason, "count": 1, "examples": [each.place]} for each in rejected]
    return {"unit": "image", **figures(opened, rows)[0], "dropped": dropped}


def figures(opened: Opened, rows: Pictures) -> tuple[dict[str, Any], Any]:
    """Every figure of the task, and what they rest on row by row."""
    if opened.task == "autoencoder":
        errors = squares(opened, rows)
        return metrics.reconstruction_report(errors, rows.pixels[0].size), errors
    if opened.task == "gan":
        return closeness(opened, rows), None
    chances = probabilities(opened.model, rows, opened.precision)
    return metrics.classification_report(rows.targets, chances.argmax(1), chances, opened.labels), chances


def closeness(opened: Opened, rows: Pictures, draws: int = 5, width: int = 64) -> dict[str, Any]:
    """How far generated images are from held-out ones: Fréchet distance of their pixels' first `width` principal components.

    As many are generated as there are held-out ones, `draws` times; the interval is over those.
    """
    from sklearn.decomposition import PCA

    def flat(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1).astype(np.float32) / 255

    if len(rows) < MOST_ALIKE:
        return {"metrics": {}, "rows": len(rows), "level": 0.95}
    real = flat(rows.chosen)
    look = PCA(min(width, *real.shape), svd_solver="randomized", random_state=0).fit(real)
    seen = look.transform(real)
    found = [metrics.frechet(look.transform(flat(generated(opened, len(real), seed))), seen) for seed in range(draws)]
    return {
        "metrics": {"frechet_pixels": metrics.over_seeds(found).json()},
        "primary": "frechet_pixels",
        "rows": len(real),
        "level": 0.95,
    }


def at_the_end(run: Run, prepared: Prepared, say: Say) -> dict[str, Any]:
    """The test of a training run, with honest baselines and examples; JSON-ready."""
    opened, rows = answering(run, prepared.asked.network), prepared.rows["test"]
    say(f"testing on {len(rows)} images that were neither learned from nor chosen by")
    result, found = figures(opened, rows)
    order = np.random.default_rng(0).permutation(len(prepared.rows["train"]))[: baselines.PIXEL_ROWS]
    sample = prepared.rows["train"].take(np.sort(order))
    if opened.task == "autoencoder":
        each = rows.pixels[0].size
        result["baselines"] = []
        for name, errors in baselines.reconstructions(sample.chosen, rows.chosen, opened.model.config["code"]).items():
            report = metrics.reconstruction_report(errors, each)
            comparison = compare(
                metrics.mean,
                errors / each,
                found / each,
                names=(name, "the autoencoder"),
                metric="mean squared error",
                higher_is_better=False,
                points=False,
                unit="image",
            )
            entry = {"name": name, "settings": {}, "metrics": report["metrics"], "comparison": comparison, "notes": []}
            result["baselines"].append(entry)
    elif opened.task == "image-classification":
        if prepared.experiment.task.baselines:
            say("baselines on the same split: majority class, most similar training images")
            others = baselines.pixels(sample.chosen, sample.targets, rows.chosen, len(opened.labels))
            result["baselines"] = beside(others, rows.targets, found, opened.labels, "image")
        result["examples"] = right_and_wrong(
            rows.targets, found, opened.labels, lambda n: {"image": base64.b64encode(png(rows.chosen[n])).decode()}
        )
    return {"unit": "image", **result}
