"""What an experiment says about its model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from danlu.core.config import option
from danlu.core.types import CORPUS_TASKS, IMAGE_TASKS, TEXT_TASKS


CODE = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*")
"""How a person's own network is named: `module:object`."""
THEIRS = "danlu_own"
"""The model_type of such a network's config.json."""


@dataclass(frozen=True)
class ModelOptions:
    """The network, and what of it is trained."""

    model: str = option(
        "smollm2-135m",
        "a catalogue name (`danlu models`), a folder, a hub name, an earlier run or one of its checkpoints; "
        "or an architecture with random weights: gpt, bert, mlp, vgg11, resnet18, vit, module:object for your own. Also written init=",
    )
    initialise: str | None = option(
        None,
        "from random weights: how they are drawn; unless set, zero_residual for a gpt with muon, else as the architecture's paper has it",
        choices=("normal", "xavier_uniform", "kaiming_normal", "orthogonal", "gpt2", "zero_residual"),
    )
    vectors: str | None = option(
        None,
        "from random weights: word vectors (a file, or a folder of `danlu prepare vectors`) that the tokens' embedding starts from",
        tasks=CORPUS_TASKS,
    )
    method: str | None = option(
        None,
        "what is trained: lora (small matrices beside frozen weights) or full",
        choices=("lora", "full"),
        tasks=TEXT_TASKS,
    )
    rank: int = option(16, "LoRA: width of the small matrices", low=1, tasks=TEXT_TASKS)
    alpha: float = option(32.0, "LoRA: the update counts alpha / rank", low=0, tasks=TEXT_TASKS)
    lora_dropout: float = option(0.0, "LoRA: dropout before the small matrices", low=0.0, high=0.9, tasks=TEXT_TASKS)
    lora_targets: tuple[str, ...] = option(
        ("all-linear",), "LoRA: names of the linear layers adapted, or all-linear", tasks=TEXT_TASKS
    )
    freeze: tuple[str, ...] = option(
        (), "weights left as they are: embeddings, layers.0-3, or any part of a parameter's name"
    )
    dropout: float | None = option(None, "dropout inside the network; derived from the checkpoint", low=0.0, high=0.9)
    template: str | None = option(
        None, "a file with a Jinja chat template; derived from the checkpoint", tasks=("chat",)
    )
    depth: int | None = option(
        None,
        "from random weights: layers of a gpt, bert or vit; width and heads follow; derived from the tokens there are",
        low=1,
        high=256,
        tasks=(*CORPUS_TASKS, "image-classification"),
    )
    hidden: tuple[int, ...] | None = option(
        None,
        "from random weights: widths of the hidden layers (mlp, plain autoencoder)",
        low=1,
        high=65_536,
        tasks=IMAGE_TASKS,
    )
    activation: str = option(
        "relu", "mlp: what stands between its layers", choices=("relu", "sigmoid", "tanh", "gelu"), tasks=IMAGE_TASKS
    )
    code: int | None = option(
        None,
        "width of an autoencoder's code, or of the noise a generator starts from",
        low=1,
        high=65_536,
        tasks=IMAGE_TASKS[1:],
    )
    convolutional: bool = option(
        True, "autoencoder: convolutions, or fully connected layers (hidden=)", tasks=("autoencoder",)
    )
