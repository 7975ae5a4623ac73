"""Images as a person looks at them: grids of what a network has learned to make so far."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from danlu.core.cache import whole
from danlu.data.pictures import Pictures
from danlu.stages.prepare import Prepared
from danlu.training.fit import State, Step, averaged


SHOWN = 8
"""Images side by side in a grid of samples."""


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
            with averaged(state.task.learners()):
                images = grid_of(self.model, rows, self.prepared.experiment.task.noise)
            folder = self.run / "samples"
            folder.mkdir(exist_ok=True)
            with whole(folder / f"step-{state.step:08d}.png") as building:
                building.write_bytes(png(tiled(images)))


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
