"""Images through the stages, before and while they are learned from: decoded, settings derived, the network described.

Keeps to `stages.modality.Modality`; what a trained network of images answers is in `image_answers.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from danlu.core import config as settings
from danlu.core.errors import UserError, reading
from danlu.core.types import CLASSIFIERS
from danlu.data.images import read_images, survey
from danlu.data.pictures import Pictures
from danlu.data.processor import Augment, Processor, usual_size
from danlu.data.source import Source
from danlu.experiment import Asked, Experiment
from danlu.models import own, vision
from danlu.models.base import Base, resolve
from danlu.models.folder import labels_of, read_json
from danlu.models.initialise import initialise
from danlu.models.options import CODE, ModelOptions
from danlu.stages.image_answers import BATCH, answering, at_the_end, evaluate, predict, probabilities
from danlu.stages.modality import Modality
from danlu.stages.prepare import (
    KEPT,
    PARTS,
    Open,
    Prepared,
    Say,
    check_gain,
    check_labels,
    learned_before,
    number,
    part,
    rate_before,
    shared_findings,
    sources_of,
    without_weights,
)
from danlu.stages.samples import Samples
from danlu.tasks.material import Account, Item


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
        for index, (place, key) in enumerate(zip(pictures.numbers.tolist(), pictures.keys(), strict=True)):
            row = rows[place]
            label = str(row.values["label"]) if self.labelled else None
            values = {"source": len(self.pictures), "index": index}
            found.append(Item(place, row.place, key, "", values, label))
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
    sources = sources_of(asked, data, read_source)
    base = start(experiment.model.model, say)
    if asked.network is not None or CODE.fullmatch(base.name):
        own.find(asked.network, base.name)  # what is wrong with it is told before anything is read
    Augment.check(experiment.task.augment)
    check_gain(experiment, base)
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
    old = labels_of(config)
    side = (processor.size, f"{base.name} sees images of that size") if base.kind != "random" else usual_size(seen)
    everything, findings = derive(
        asked, base, config, side, len(rows["train"]), len(rows["validation"]), bool(labels) and old != list(labels)
    )
    findings |= shared_findings(sources, parts, sum(map(len, rows.values())), dropped, labels)
    findings["notes"] += seen.notes
    findings["notes"] += learned_before(base, parts["test"])
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
    if name in vision.ARCHITECTURES or CODE.fullmatch(name):
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


def read_source(asked: Asked, place: Any, max_rows: int | None) -> Source:
    """One source of images, with labels where the task learns them."""
    options = asked.experiment.data
    return read_images(
        place,
        bad_rows=options.bad_rows,
        max_rows=max_rows,
        image=options.image,
        label=options.label,
        labelled=asked.experiment.task.task in CLASSIFIERS,
    )


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
        for key in ("hidden", "code", "activation", "convolutional", "depth", "initialise"):
            if key in asked.settings and getattr(options, key) != getattr(ModelOptions(), key):
                raise UserError(f"{key}= describes random weights, but {base.name} has weights", "leave it out")
        for key, found in (("num_channels", processor.channels), ("image_size", processor.size)):
            if config.get(key, found) != found and (key == "num_channels" or config.get("model_type") != "resnet"):
                raise UserError(
                    f"{base.folder}: preprocessor_config.json gives {key} {found}, config.json says {config[key]}",
                    "both must be of one model: copy or fetch it again",
                )
        return config
    if task in ("autoencoder", "gan") and base.name != task:
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
        depth=options.depth,
    )


def derive(
    asked: Asked,
    base: Base,
    config: dict[str, Any],
    side: tuple[int, str],
    rows: int,
    validation_rows: int,
    new_head: bool,
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
        if (
            new_head
            and asked.network is None
            and opened.settings["learning_rate"].value is None
            and not asked.experiment.model.freeze
        ):
            opened.fill("learning_rates", {"head": like or usual}, "the new head has nothing to keep")
        opened.fill("learning_rate", (like or usual) / 10, f"a tenth of {said}, so that what it has learned stays")
    size = min(32, max(8, 2 ** int(math.log2(max(8, rows / 25)))))
    opened.fill("batch_size", size, f"{rows} training images: about 25 updates in a pass, 8 to 32 images in one")
    passes = 3.0 if rows >= 50_000 else 10.0
    opened.length(rows, passes, f"{rows} training images: {passes:g} passes", validation_rows, Pictures.least)
    rates = {"pretraining": before, "now": opened.settings["learning_rate"].value}
    return opened.settings, {"learning_rate": rates} if before else {}


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


# ---------------------------------------------------------------------------------------------------------------- train


def network(prepared: Prepared, say: Say) -> Any:
    """The network of an experiment on its device: random weights, or those it starts from with a new head."""
    assert prepared.config is not None
    seed, base = prepared.experiment.training.seed, prepared.base
    dropout = prepared.experiment.model.dropout
    labels = prepared.labels or None
    if base.kind == "random":
        model = vision.from_config(prepared.config, labels, seed, prepared.asked.network)
        if name := prepared.experiment.model.initialise:
            initialise(model, name, seed)
    else:
        with reading(base.folder):
            code = prepared.asked.network
            model = vision.load(
                base.folder, labels=labels, dropout=dropout, seed=seed, new_head=True, log=say, network=code
            )
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def blank(prepared: Prepared) -> Prepared:
    """The same with random weights."""
    dropout = prepared.experiment.model.dropout
    learned = vision.load(
        prepared.base.folder,
        labels=prepared.labels,
        dropout=dropout,
        new_head=True,
        log=lambda _: None,
        network=prepared.asked.network,
    )
    return replace(without_weights(prepared), config=learned.config)


def chances(prepared: Prepared, model: Any, part: str) -> np.ndarray:
    """What a classifier gives each image of a part: float32 [images, labels]."""
    return probabilities(model.eval(), prepared.rows[part], torch.float32)


def micro_batch(prepared: Prepared) -> int:
    """A batch of images is never cut: batch normalisation looks at all of it."""
    return number(prepared.experiment.training.batch_size)


def watch(run: Path, prepared: Prepared, model: Any, every: int, until: int, _: Say) -> list[Any]:
    """What a generative network has learned so far, as pictures."""
    return [] if prepared.labels else [Samples(run, prepared, model, every, until)]


IMAGES = Modality(
    prepare=prepare,
    read=read_source,
    keep=keep,
    network=network,
    micro_batch=micro_batch,
    looked_at=lambda _: BATCH,
    at_the_end=at_the_end,
    evaluate=evaluate,
    predict=predict,
    answering=answering,
    blank=blank,
    chances=chances,
    watch=watch,
    settings={
        "evaluate": ("label", "network"),
        "predict": ("out", "count", "seed", "network"),
        "serve": ("network",),
    },
)
