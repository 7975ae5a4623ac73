"""Images through the stages: what differs from text in preparing, building, measuring and answering."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from danlu.core import config as settings
from danlu.core.errors import UserError, reading
from danlu.core.run import Run, find_run
from danlu.data.images import Pictures, read_images, survey
from danlu.data.processor import Augment, Processor, usual_size
from danlu.data.source import Source
from danlu.evaluation import baselines, metrics
from danlu.evaluation.compare import compare
from danlu.experiment import Asked, Experiment
from danlu.models import vision
from danlu.models.options import ModelOptions
from danlu.models.pretrained import Base, labels_of, read_json, resolve
from danlu.stages.load import sealed
from danlu.stages.prepare import (
    KEPT,
    LEARNED,
    PARTS,
    Open,
    Prepared,
    check_labels,
    fingerprint,
    part,
    shared_findings,
    sources_of,
)
from danlu.tasks.generative import Autoencoding
from danlu.tasks.material import Account, Item
from danlu.training.fit import State, Step
from danlu.training.hooks import measure


Say = Callable[[str], None]
BATCH = 64
"""Images in one forward pass where nothing is learned; fixed, so that a figure never depends on a setting of training."""
SHOWN = 8
"""Images side by side in a grid of samples."""
MOST_ALIKE = 10
"""Fewer held-out images than this have no spread that a generator could be compared with."""
RATES = {"vit": 5e-4, "danlu_gan": 2e-4}
"""Adam's rate from random weights, where it is not 1e-3 (Kingma and Ba 2015): Dosovitskiy et al. 2021, Radford et al. 2016."""


# -------------------------------------------------------------------------------------------------------------- prepare


class Images:
    """Rows with an image: what `part` splits. pictures: of each source in the order they were read."""

    def __init__(self, processor: Processor, bad_rows: str, labelled: bool, kept: bool) -> None:
        """kept: the first source has gone through the processor already, so nothing is cut off again."""
        self.processor, self.bad_rows, self.labelled, self.kept = processor, bad_rows, labelled, kept
        self.pictures: list[Pictures] = []
        self.said = ""

    def items(self, source: Source) -> tuple[list[Item], Account]:
        """Every row decoded; equal pixels are an equal key."""
        processor = replace(self.processor, resize="squash") if self.kept and not self.pictures else self.processor
        pictures, rejected = Pictures.read(source, processor, bad_rows=self.bad_rows)
        account = Account()
        for each in rejected:
            account.add(each.reason, each.place)
        rows = {row.number: row for row in source.rows}
        found = []
        for index, (number, key) in enumerate(zip(pictures.numbers.tolist(), pictures.keys(), strict=True)):
            row = rows[number]
            label = str(row.values["label"]) if self.labelled else None
            values = {"source": len(self.pictures), "index": index}
            found.append(Item(number, row.place, key, "", values, label))
        self.pictures.append(pictures)
        self.said = "images with labels" if self.labelled else "images, labels not looked at"
        return found, account

    def rows(self, items: Sequence[Item], labels: Sequence[str], processor: Processor) -> Pictures:
        """One part of a split."""
        pictures = self.pictures[items[0].values["source"] if items else 0]
        targets = [labels.index(str(item.label)) if labels else -1 for item in items]
        chosen = pictures.take([item.values["index"] for item in items])
        return replace(chosen, targets=np.array(targets, np.int64), processor=processor)


def prepare(asked: Asked, data: Any, say: Say) -> Prepared:
    """Everything up to the first step, as `stages.prepare.prepare` promises it."""
    experiment = asked.experiment
    options, task = experiment.data, experiment.task.task
    sources = sources_of(asked, data)
    base = start(experiment.model.model, say)
    Augment.check(experiment.task.augment)
    if experiment.task.gain_seeds == 1:
        raise UserError("gain_seeds=1: one seed has no interval", "give 2 or more, or 0 for no comparison")
    if experiment.task.gain_seeds and base.kind == "random":
        raise UserError(
            f"gain_seeds={experiment.task.gain_seeds}, but {base.name} starts from random weights", "leave it out"
        )
    processor = stored(base, options.image_size)
    seen = survey(sources["data"])
    if processor is None:
        processor = Processor.of(seen, size=options.image_size, scale="symmetric" if task == "gan" else "unit")
    kept = "data" in asked.settings and asked.settings["data"].origin == KEPT
    material = Images(processor, options.bad_rows, task == "image-classification", kept)
    dropped = Account()
    parts = part(material, sources, experiment, dropped, say)
    labels = check_labels(parts, sources) if material.labelled else ()
    if base.kind == "random" and material.labelled:
        train = material.rows(parts["train"], labels, processor)
        processor = processor.fit(train.pixels, train.index)
    rows = {name: material.rows(items, labels, processor) for name, items in parts.items()}
    if not len(rows["train"]):
        raise UserError("nothing to learn: no usable image", "look at `danlu preflight`")
    config = described(base, asked, processor, labels)
    side = (processor.size, f"{base.name} sees images of that size") if base.kind != "random" else usual_size(seen)
    everything, findings = derive(asked, base, config, side, len(rows["train"]), len(rows["validation"]))
    findings |= shared_findings(sources, parts, sum(map(len, rows.values())), dropped, labels)
    findings["notes"] += seen.notes
    before = learned_before(base)
    if known := sum(fingerprint(item.key) in before for item in parts["test"]):
        findings["notes"].append(
            f"warning: {known} of the {len(parts['test'])} test images were learned from by {base.name}, so the figures flatter the model"
        )
    findings["images"] = {
        "size": processor.size,
        "channels": processor.channels,
        "mean": list(processor.mean),
        "std": list(processor.std),
        "resize": processor.resize,
        "stored": rows["train"].where,
        "sizes": [[f"{width}x{height}", count] for (width, height), count in seen.sizes.most_common()],
        "modes": dict(seen.modes),
    }
    if base.kind == "random":
        findings["notes"].append(
            f"{base.name} starts from random weights; model=RUN or a folder starts from learned ones"
        )
    return Prepared(
        asked=asked,
        experiment=settings.build(Experiment, everything),
        settings=everything,
        base=base,
        weights=None,
        processor=processor,
        labels=labels,
        rows=rows,
        items=parts,
        sources=sources,
        findings=findings,
        config=config,
    )


def start(name: str, say: Say) -> Base:
    """Where the weights come from: an architecture's name means random ones."""
    if name in vision.ARCHITECTURES:
        return Base(name, Path(), "", "none: random weights", "random")
    return resolve(name, say, vision.ARCHITECTURES)


def stored(base: Base, size: int | None) -> Processor | None:
    """The preprocessing the weights were trained with; there is no other that fits them."""
    if base.kind == "random":
        return None
    processor = Processor.load(base.folder)
    if size not in (None, processor.size):
        raise UserError(
            f"image_size={size}, but {base.name} was trained on images of {processor.size}x{processor.size}",
            "leave image_size out; the images are resized",
        )
    return processor


def learned_before(base: Base) -> frozenset[str]:
    """Fingerprints of the images that the run behind these weights learned from."""
    run = run_behind(base)
    path = run.path / "data" / LEARNED if run else None
    return frozenset(path.read_text("utf-8").split()) if path and path.is_file() else frozenset()


def described(base: Base, asked: Asked, processor: Processor, labels: Sequence[str]) -> dict[str, Any]:
    """The config.json of the network: of the weights there are, or of random ones as asked."""
    options, task = asked.experiment.model, asked.experiment.task.task
    if base.kind != "random":
        config = read_json(base.folder / "config.json")
        kind = {"autoencoder": "danlu_autoencoder", "gan": "danlu_gan"}.get(task)
        if kind is not None and config.get("model_type") != kind:
            raise UserError(
                f"{base.name} is a {config.get('model_type')}, which cannot learn to be a {task}", f"model={task}"
            )
        if kind is not None and config.get("id2label"):
            raise UserError(
                f"{base.name} was fine-tuned to classify: half of the {task} is gone", "start from the run it came from"
            )
        for key in ("hidden", "code", "activation", "convolutional"):
            if key in asked.settings and getattr(options, key) != getattr(ModelOptions(), key):
                raise UserError(f"{key}= describes random weights, but {base.name} has weights", "leave it out")
        for key, found in (("num_channels", processor.channels), ("image_size", processor.size)):
            if config.get(key, found) != found and (key == "num_channels" or config.get("model_type") != "resnet"):
                raise UserError(
                    f"{base.folder}: preprocessor_config.json gives {key} {found}, config.json says {config[key]}",
                    "both must be of one model: copy or fetch it again",
                )
        return config
    generative = base.name if base.name in ("autoencoder", "gan") else None
    if (task in ("autoencoder", "gan") or generative) and generative != task:
        raise UserError(f"model={base.name} cannot be trained for {task}", "see `danlu recipes` for what goes together")
    return vision.describe(
        base.name,
        channels=processor.channels,
        size=processor.size,
        labels=labels,
        hidden=options.hidden,
        activation=options.activation,
        dropout=options.dropout,
        code=options.code,
        convolutional=options.convolutional,
    )


def derive(
    asked: Asked, base: Base, config: dict[str, Any], side: tuple[int, str], rows: int, validation_rows: int
) -> tuple[dict[str, settings.Setting], dict[str, Any]]:
    """The settings of training on images, and the learning rate of pretraining beside today's."""
    opened = Open(asked)
    opened.fill("image_size", *side)
    optimizer = asked.experiment.training.optimizer
    plain = 50.0 if optimizer == "sgd" else 1.0  # plain gradients are small
    usual = plain * RATES.get(str(config.get("model_type")), 1e-3)
    before, by = rate_before(base)
    if base.kind == "random":
        opened.fill("learning_rate", usual, "from random weights")
    else:
        like = before if (by == "sgd") == (optimizer == "sgd") else None
        said = f"{like:g}, the rate of its pretraining" if like else f"{usual:g}, usual from random weights"
        opened.fill("learning_rate", (like or usual) / 10, f"a tenth of {said}, so that what it has learned stays")
    size = min(32, max(2, 2 ** int(math.log2(max(2, rows / 25)))))
    opened.fill("batch_size", size, f"{rows} training images: at least 25 updates in a pass, at most 32 images in one")
    passes = 3.0 if rows >= 50_000 else 10.0
    opened.length(rows, passes, f"{rows} training images: {passes:g} passes", validation_rows, Pictures.least)
    rates = {"pretraining": before, "now": opened.settings["learning_rate"].value}
    return opened.settings, {"learning_rate": rates} if before else {}


def run_behind(base: Base) -> Run | None:
    """The run that made these weights."""
    if base.kind == "checkpoint":
        return Run(Path(base.name).expanduser().parent.parent)  # RUN/checkpoints/step-…
    found = find_run(Path(base.name).expanduser()) if base.kind == "run" else None
    return Run(found) if found else None


def rate_before(base: Base) -> tuple[float | None, str | None]:
    """The peak learning rate of the run that made these weights, and its optimizer."""
    run = run_behind(base)
    if run is None:
        return None, None
    used = run.read("experiment.json")["used"]
    return float(used["learning_rate"]["value"]), str(used["optimizer"]["value"])


def keep(prepared: Prepared, folder: Path, everything: bool) -> None:
    """The held-out images as the network sees them go with the run; all of them when they came from Python."""
    for name in ("validation", "test"):
        prepared.rows[name].save(folder / f"{name}.npz", prepared.labels)
    if everything:
        train = prepared.rows["train"]
        same = [
            part for name in PARTS if (part := prepared.rows[name]).pixels is train.pixels
        ]  # not of a file of their own
        index, numbers, targets = (
            np.concatenate(each) for each in zip(*[(p.index, p.numbers, p.targets) for p in same], strict=True)
        )
        order = np.argsort(numbers)
        whole = replace(train, index=index[order], numbers=numbers[order], targets=targets[order])
        whole.save(folder / "data.npz", prepared.labels)


# ---------------------------------------------------------------------------------------------------------------- build


def network(prepared: Prepared, say: Say) -> Any:
    """The network of an experiment on its device: random weights, or those it starts from with a new head."""
    assert prepared.config is not None
    seed, base = prepared.experiment.training.seed, prepared.base
    dropout = prepared.experiment.model.dropout
    labels = prepared.labels or None
    if base.kind == "random":
        model = vision.from_config(prepared.config, labels, seed)
    else:
        with reading(base.folder):
            model = vision.load(base.folder, labels=labels, dropout=dropout, seed=seed, new_head=True, log=say)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def augmentation(prepared: Prepared) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What training images go through; None for texts."""
    names = prepared.experiment.task.augment
    return Augment(names, prepared.processor) if names else None


@dataclass
class Samples:
    """A grid of images every `every` steps, as a person looks at them: originals over reconstructions, or generated ones."""

    run: Path
    prepared: Prepared
    model: Any
    every: int
    until: int

    def __call__(self, state: State, step: Step) -> None:
        if state.step == 1 or state.step % self.every == 0 or state.step == self.until:
            rows = self.prepared.rows["validation"]
            rows = rows if len(rows) else self.prepared.rows["train"]
            images = grid_of(self.model, rows, self.prepared.experiment.task.noise)
            folder = self.run / "samples"
            folder.mkdir(exist_ok=True)
            (folder / f"step-{state.step:08d}.png").write_bytes(png(tiled(images)))


@torch.inference_mode()
def grid_of(model: Any, rows: Pictures, noise: float) -> np.ndarray:
    """uint8 [lines, SHOWN, channels, side, side]. Draws from generators of its own, so training is as it was."""
    device, training = next(model.parameters()).device, model.training
    rng = torch.Generator().manual_seed(0)
    model.eval()
    try:
        if model.config["model_type"] == "danlu_gan":
            codes = torch.randn(SHOWN * SHOWN, model.config["code"], generator=rng).to(device)
            made = rows.processor.restore(model.generator(codes).float())
            return made.reshape(SHOWN, SHOWN, *made.shape[1:])
        clean = rows.batch(range(min(SHOWN, len(rows)))).inputs
        seen = clean + noise * torch.randn(clean.shape, generator=rng) if noise else clean
        back = model.reconstruct(seen.to(device)).float()
        lines = [clean, seen, back] if noise else [clean, back]
        return np.stack([rows.processor.restore(line) for line in lines])
    finally:
        model.train(training)


def tiled(images: np.ndarray) -> np.ndarray:
    """[lines, columns, channels, side, side] -> one image [channels, height, width], a pixel of grey between them."""
    lines, columns, channels, height, width = images.shape
    framed = np.full((lines, columns, channels, height + 1, width + 1), 128, np.uint8)
    framed[..., :-1, :-1] = images
    whole = framed.transpose(2, 0, 3, 1, 4).reshape(channels, lines * (height + 1), columns * (width + 1))
    return whole[:, :-1, :-1]


def png(image: np.ndarray) -> bytes:
    """uint8 [channels, height, width] -> the bytes of a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(file, "PNG", optimize=False)
    return file.getvalue()


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

    def __call__(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """A label with probabilities, or the error of the reconstruction, for each image: a path, bytes, an array or a PIL image."""
        places = [str(each) if isinstance(each, (str, Path)) else f"image {n}" for n, each in enumerate(inputs, 1)]
        pixels = self.processor.prepare(list(inputs), places)
        rows = Pictures.of(pixels, range(len(pixels)), [-1] * len(pixels), self.processor)
        named = [{"input": place} for place in places]
        if self.task == "autoencoder":
            errors = squares(self, rows) / pixels[0].size
            return [{**name, "mse": round(float(error), 8)} for name, error in zip(named, errors, strict=True)]
        return [
            {
                **name,
                "label": self.labels[int(row.argmax())],
                "probabilities": {label: round(float(p), 6) for label, p in zip(self.labels, row, strict=True)},
            }
            for name, row in zip(named, probabilities(self, rows), strict=True)
        ]


def open_final(run: Run) -> Opened:
    """The final network of a run.

    Raises:
        UserError: the run has none yet, or it has changed since it was written.
    """
    sealed(run)
    facts, used = run.read("run.json"), run.read("experiment.json")["used"]
    torch.set_num_threads(int(used["threads"]["value"] or 1))
    labels = tuple(facts.get("labels") or ())
    with reading(run.model):
        model = vision.load(run.model, log=lambda _: None)
        processor = Processor.load(run.model)
    if (found := tuple(labels_of(model.config) or ())) != labels:
        raise UserError(
            f"{run.path}: run.json has the labels {', '.join(labels)}, the model {', '.join(found)}",
            "restore the folder from a copy of the run",
        )
    model.requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return Opened(run, model, processor, facts["task"], labels, getattr(torch, used["precision"]["value"]))


@torch.inference_mode()
def probabilities(opened: Opened, rows: Pictures) -> np.ndarray:
    """Softmax of the logits, float32 [rows, labels]."""
    device, found = next(opened.model.parameters()).device, []
    for start in range(0, len(rows), BATCH):
        batch = rows.batch(range(start, min(start + BATCH, len(rows))))
        with torch.autocast(device.type, opened.precision, enabled=opened.precision != torch.float32):
            logits = opened.model.logits(opened.model(batch.inputs.to(device)))
        found.append(logits.float().softmax(-1).cpu().numpy())
    return np.concatenate(found)


def squares(opened: Opened, rows: Pictures) -> np.ndarray:
    """Summed squared error of each image and its reconstruction, [rows]."""
    task = Autoencoding(opened.model)
    found = []
    for start in range(0, len(rows), BATCH):
        batch = rows.batch(range(start, min(start + BATCH, len(rows))))
        found.append(measure(opened.model, task.measures, [batch], opened.precision)["loss"][0].numpy())
    return np.concatenate(found)


def predict(
    run: Run, inputs: Sequence[Any] | None, data: Any = None, out: str | None = None, count: int = 64, seed: int = 0
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
    opened = open_final(run)
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
        asked = [row.values["image"] for row in read_images(data, labelled=False).rows]
    if not asked:
        raise UserError("nothing to answer", "name image files, or data=FOLDER")
    found = opened(asked)
    if out is not None:
        if opened.task != "autoencoder":
            raise UserError(f"out={out}: a classifier has no image to write", "leave out= away")
        pixels = opened.processor.prepare(asked[:SHOWN], [str(each) for each in asked[:SHOWN]])
        rows = Pictures.of(pixels, range(len(pixels)), [-1] * len(pixels), opened.processor)
        Path(out).write_bytes(png(tiled(grid_of(opened.model, rows, 0.0))))
    return found


def one_or_more(inputs: Any) -> Sequence[Any]:
    """A path, or an array of one image, is one input; a list, or an array of several, is several."""
    if inputs is None:
        return ()
    one = isinstance(inputs, (str, Path, bytes)) or getattr(inputs, "ndim", None) == 2
    return (inputs,) if one else inputs


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


def evaluate(run: Run, data: Any, say: Say, label: str | None = None) -> dict[str, Any]:
    """Figures of a finished run on its own test images, or on `data`."""
    opened = open_final(run)
    own, labelled = data is None, opened.task == "image-classification"
    if label is not None and (own or not labelled):
        raise UserError(f"label={label}, but no labels of a file are read here", "leave it out, or give data=FILE")
    if own and not (run.path / "data" / "test.npz").is_file():
        raise UserError(f"{run.path} kept no test rows", "give data=")
    used = {key: entry["value"] for key, entry in run.read("experiment.json")["used"].items()}
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
    learned = set((run.path / "data" / LEARNED).read_text("utf-8").split())
    known = 0 if own else sum(fingerprint(key) in learned for key in rows.keys())  # noqa: SIM118 (not a dict)
    if known:
        say(f"warning: {known} of these {len(rows)} images were learned from, so the figures flatter the model")
    dropped = [{"reason": each.reason, "count": 1, "examples": [each.place]} for each in rejected]
    return {"split": "test" if own else "data", **figures(opened, rows)[0], "dropped": dropped}


def figures(opened: Opened, rows: Pictures) -> tuple[dict[str, Any], Any]:
    """Every figure of the task, and what they rest on row by row."""
    if opened.task == "autoencoder":
        errors = squares(opened, rows)
        return metrics.reconstruction_report(errors, rows.pixels[0].size), errors
    if opened.task == "gan":
        return closeness(opened, rows), None
    chances = probabilities(opened, rows)
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
    opened, rows = open_final(run), prepared.rows["test"]
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
            )
            entry = {"name": name, "settings": {}, "metrics": report["metrics"], "comparison": comparison, "notes": []}
            result["baselines"].append(entry)
    elif opened.task == "image-classification":
        if prepared.experiment.task.baselines:
            say("baselines on the same split: majority class, most similar training images")
            result["baselines"] = beside(prepared, sample, rows, found)
        result["examples"] = right_and_wrong(rows, found, opened.labels)
    return {"split": "test", **result}


def beside(prepared: Prepared, sample: Pictures, rows: Pictures, chances: np.ndarray) -> list[dict[str, Any]]:
    """Baselines on the same split, each compared with the model row by row."""
    labels, result = prepared.labels, []
    for each in baselines.pixels(sample.chosen, sample.targets, rows.chosen, len(labels)):
        report = metrics.classification_report(rows.targets, each.predicted, each.probabilities, labels)
        comparison = compare(
            metrics.accuracy,
            each.predicted,
            chances.argmax(1),
            rows.targets,
            names=(each.name, "the model"),
            metric="accuracy",
        )
        shown = {key: value for key, value in asdict(each).items() if key in ("name", "settings", "notes")}
        result.append({**shown, "metrics": report["metrics"], "comparison": comparison})
    return result


def right_and_wrong(rows: Pictures, chances: np.ndarray, labels: Sequence[str], each: int = 12) -> list[dict[str, Any]]:
    """The most confident mistakes, and some right answers, as pictures."""
    right, sure = chances.argmax(1) == rows.targets, chances.max(1)
    order = np.argsort(-sure, kind="stable")
    wrong, fine = (order[right[order] == wanted] for wanted in (False, True))
    chosen = [*wrong[:each], *fine[:: max(1, len(fine) // each)][:each]]
    return [
        {
            "image": base64.b64encode(png(rows.chosen[place])).decode(),
            "expected": labels[rows.targets[place]],
            "answer": labels[int(chances[place].argmax())],
            "right": bool(right[place]),
            "confidence": round(float(sure[place]), 4),
        }
        for place in chosen
    ]
