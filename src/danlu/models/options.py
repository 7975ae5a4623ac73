"""What an experiment says about its model."""

from __future__ import annotations

from dataclasses import dataclass

from danlu.core.config import option


@dataclass(frozen=True)
class ModelOptions:
    """The network, and what of it is trained."""

    model: str = option("smollm2-135m", "a catalogue name (`danlu models`), a folder, a hub name, or an earlier run")
    method: str | None = option(
        None, "what is trained: lora (small matrices beside frozen weights) or full", choices=("lora", "full")
    )
    rank: int = option(16, "LoRA: width of the small matrices", low=1)
    alpha: float = option(32.0, "LoRA: the update counts alpha / rank", low=0)
    lora_dropout: float = option(0.0, "LoRA: dropout before the small matrices", low=0.0, high=0.9)
    lora_targets: tuple[str, ...] = option(("all-linear",), "LoRA: names of the linear layers adapted, or all-linear")
    freeze: tuple[str, ...] = option(
        (), "weights left as they are: embeddings, layers.0-3, or any part of a parameter's name"
    )
    dropout: float | None = option(None, "dropout inside the network; derived from the checkpoint", low=0.0, high=0.9)
    template: str | None = option(None, "a file with a Jinja chat template; derived from the checkpoint")
