"""Generative: images to themselves, and a generator against a discriminator. Labels are never looked at."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from danlu.core.types import Examples, Learner
from danlu.tasks.network import NetworkTask


class Autoencoding(NetworkTask):
    """Mean squared error between an image and what comes back through the code, a pixel of a channel counting one.

    noise: deviation of normal noise added to what the encoder sees; the target is the clean image (Vincent et al. 2008).
    """

    def __init__(self, model: Any, learner: Learner | None = None, noise: float = 0.0) -> None:
        super().__init__(model, model=learner)
        self.noise = noise

    def counts(self, batch: Examples, learner: str) -> dict[str, float]:
        return {"pixels": float(batch.inputs.numel())}

    def losses(self, batch: Examples, learner: str) -> dict[str, torch.Tensor]:
        return {"pixels": self.squares(batch.inputs, self.noise)}

    def squares(self, images: torch.Tensor, noise: float = 0.0) -> torch.Tensor:
        """Summed squared error of each image: [examples]."""
        images = images.to(next(self.model.parameters()).device)
        seen = images + noise * torch.randn_like(images) if noise else images
        return F.mse_loss(self.model.reconstruct(seen).float(), images, reduction="none").flatten(1).sum(1)

    def measures(self, batch: Examples) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Validation, without noise: name -> (sum, count) of each image."""
        squares = self.squares(batch.inputs).cpu()
        return {"loss": (squares, torch.full_like(squares, batch.inputs[0].numel()))}


class Adversarial(NetworkTask):
    """A generator against a discriminator (Goodfellow et al. 2014), from logits: D(x) = sigmoid(discriminator(x)).

    The discriminator learns -log D(x) - log(1 - D(G(z))), the generator the non-saturating -log D(G(z)), whose gradient does not
    vanish while the discriminator is right. Both see noise z drawn for this update; an image counts one.
    """

    def __init__(self, model: Any, discriminator: Learner, generator: Learner) -> None:
        super().__init__(model, discriminator=discriminator, generator=generator)

    def counts(self, batch: Examples, learner: str) -> dict[str, float]:
        count = float(len(batch.inputs))
        return {"real": count, "generated": count} if learner == "discriminator" else {"fooled": count}

    def losses(self, batch: Examples, learner: str) -> dict[str, torch.Tensor]:
        images = batch.inputs.to(next(self.model.parameters()).device)
        noise = torch.randn(len(images), int(self.model.config["code"]), device=images.device)
        if learner == "generator":
            return {"fooled": F.softplus(-self.model.discriminator(self.model.generator(noise)))}
        with torch.no_grad():
            generated = self.model.generator(noise)
        return {
            "real": F.softplus(-self.model.discriminator(images)),
            "generated": F.softplus(self.model.discriminator(generated)),
        }
