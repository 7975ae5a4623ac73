"""Pretrained weights: from a folder to a network, and back. Only safetensors are ever read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from danlu.core.cache import whole, write_json
from danlu.core.errors import UserError
from danlu.models.base import Log, last_line
from danlu.models.catalogue import MODELS
from danlu.models.folder import (
    ONE_MODEL,
    check_parameters,
    check_repeats,
    label_keys,
    labels_of,
    read_json,
    read_weights,
    some,
    weight_files,
)
from danlu.models.options import THEIRS


if TYPE_CHECKING:
    import torch
    from torch import nn

CLASSES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
}
"""`model_type` -> what transformers' classes of our own architectures are called."""
HEAD = re.compile(r"^(score|classifier)\.|^bert\.pooler\.")
MASKS = re.compile(r"^(cls\.predictions|lm_head)\.")
LAST = re.compile(r"^(score|logits_proj|(classifier|classification_head)(\.out_proj)?)\.(weight|bias)$")
COMPUTED = re.compile(r"(rotary_emb\.inv_freq|embeddings\.(position|token_type)_ids)$")
OTHER_TASK = {
    "classification": re.compile(r"^(lm_head|cls)\.|\.pooler\."),
    "language": re.compile(r"^(score|classifier|cls\.seq_relationship)\.|\.pooler\."),
}
TIED = re.compile(r"^lm_head\.weight$|^(lm_head|cls\.predictions)\.decoder\.(weight|bias)$")
DROPOUTS = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "dropout",
    "embd_pdrop",
    "hidden_dropout",
    "hidden_dropout_prob",
    "resid_pdrop",
)
"""What architectures call their dropouts."""


def needless(network: Any, config: Mapping[str, Any]) -> None:
    """Code of a person's own network, given for one that is not.

    Raises:
        UserError: it would not be looked at.
    """
    if network is not None:
        raise UserError(f"network={network}, but the network is a {config.get('model_type')}", "leave it out")


def load(
    folder: Path,
    *,
    task: str,
    labels: Sequence[str] | None = None,
    dropout: float | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    new_head: bool = False,
    log: Log = print,
    network: Any = None,
) -> nn.Module:
    """The network in `folder`, a Backbone: our own where we have the architecture, transformers' otherwise.

    task: "language" or "classification". labels: of a classifier, in the order of its outputs; None takes the folder's. A head for
    other labels than the folder's is drawn anew from normal(0, initializer_range) by `seed`, and `log` says so.
    new_head: an encoder without a head for masked language modelling is given one. dropout: None takes the folder's. dtype: of the
    parameters, float32 by default. network: the code of a person's own.

    Raises:
        UserError: a weight is missing, unknown or of another shape (all named), a file is damaged, or the task has no head here.
    """
    import torch

    from danlu.models import decoder, encoder
    from danlu.models.initialise import Undrawn

    folder, dtype = Path(folder), dtype or torch.float32
    config = read_json(folder / "config.json")
    old = labels_of(config)
    own: Any = decoder.Decoder if decoder.supports(config) else encoder.Encoder if encoder.supports(config) else None
    if labels is not None:
        config |= label_keys(labels)
    fresh_head = task == "classification" and labels is not None and old != list(labels)
    check_repeats(config, folder)
    if config.get("model_type") == THEIRS and task == "language":
        from danlu.models import own_text

        if dropout is not None:
            raise UserError(f"dropout={dropout} describes danlu's own networks", "leave it out; set it in your code")
        return own_text.load(folder, config, network, seed).train()
    needless(network, config)
    if own is None:
        return _load_foreign(folder, config, task, fresh_head, dropout, dtype, seed, log)
    ending = {
        "classification": "SequenceClassification",
        "language": "CausalLM" if own is decoder.Decoder else "MaskedLM",
    }[task]
    config["architectures"] = [f"{CLASSES[config['model_type']]}For{ending}"]
    with torch.device("meta"), Undrawn():
        model: nn.Module = own(config, task, labels, dropout)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    skip = {name for name in wanted if fresh_head and LAST.search(name)}
    rename = partial(encoder.rename, config) if own is encoder.Encoder else _decoder_names
    state, extra = read_weights(weight_files(folder), rename, wanted, skip, dtype)
    missing = set(wanted) - set(state)
    fresh = {name for name in missing if task == "classification" and labels is not None and HEAD.search(name)}
    if new_head and own is encoder.Encoder:
        fresh |= {name for name in missing if MASKS.search(name)}
    others = {name for name in extra if OTHER_TASK[task].search(name) and name not in skip}
    tied = {name for name in extra if config.get("tie_word_embeddings", own is encoder.Encoder) and TIED.search(name)}
    unknown = {name for name in extra - others - tied - skip if not COMPUTED.search(name)}
    if missing - fresh or unknown:
        raise misfit(folder, missing - fresh, unknown, task)
    if others:
        log(f"weights that this task has no use for, not taken over: {some(others)}")
    state |= _draw(fresh, wanted, config.get("initializer_range", 0.02), dtype, seed, log)
    model.load_state_dict(state, assign=True)
    return model.train()


def save(
    model: nn.Module, folder: Path, dtype: torch.dtype | None = None, without: Collection[str] = frozenset()
) -> None:
    """config.json and model.safetensors of a whole model, as transformers reads them; each tensor once, `dtype` or as it is.

    without: weights left out.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config, network = dict(cast(Any, model).config), getattr(model, "network", None)
    # By memory, not by name: a tied weight has two, and its second one would come back untied.
    gone = {tensor.data_ptr() for name, tensor in model.state_dict().items() if name in without}
    tensors = {
        name: tensor.detach().to(dtype or tensor.dtype).contiguous().cpu()
        for name, tensor in model.state_dict().items()
        if tensor.data_ptr() not in gone
    }
    if network is not None:  # transformers knows which of its own parameters share their memory
        with quiet():
            network.save_pretrained(folder, state_dict=tensors)
        return
    kind = str(dtype or next(model.parameters()).dtype).removeprefix("torch.")
    config |= {key: kind for key in ("torch_dtype", "dtype") if key == "torch_dtype" or key in config}
    with whole(folder / "model.safetensors") as building:
        save_file(tensors, building, {"format": "pt"})
    write_json(folder / "config.json", config)


def _decoder_names(names: list[str]) -> dict[str, str]:
    """A bare LlamaModel has no prefix."""
    bare = ("embed_tokens", "layers", "norm")
    return {name: f"model.{name}" if name.split(".")[0] in bare else name for name in names}


def _draw(
    names: set[str], shapes: dict[str, tuple[int, ...]], deviation: float, dtype: torch.dtype, seed: int, log: Log
) -> dict[str, torch.Tensor]:
    """A new head: weights from normal(0, deviation), biases zero; the same for the same seed."""
    import torch

    if not names:
        return {}
    log(f"new head: {', '.join(sorted(names))}, initialised normal(0, {deviation:g}), biases 0")
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name in sorted(names):
        drawn[name] = torch.zeros(shapes[name], dtype=dtype)
        if name.endswith("weight") and len(shapes[name]) == 1:  # of a norm
            drawn[name].fill_(1.0)
        elif not name.endswith("bias"):
            drawn[name].copy_(torch.randn(shapes[name], generator=generator) * deviation)
    return drawn


def misfit(folder: Path, missing: set[str], unknown: set[str], task: str) -> UserError:
    """The error of weights and a configuration that are not of one model."""
    found = [f"lacks {some(missing)}"] * bool(missing) + [f"has the unknown {some(unknown)}"] * bool(unknown)
    fix = ONE_MODEL
    if missing and all(HEAD.search(name) for name in missing):
        fix = "this model has no trained classification head: fine-tune it first, or give labels to start a new head"
    elif missing and all(re.match(r"(cls|lm_head)\.", name) for name in missing):
        writers = [name for name in MODELS.names() if "chat" in MODELS.get(name).tasks]
        fix = f"this model has no {task} head: choose one that has, such as {', '.join(writers)}"
    return UserError(f"{folder} does not fit its config.json: it {' and '.join(found)}", fix)


@contextmanager
def quiet() -> Iterator[None]:
    """What transformers would report, we report."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def opened(
    factory: Any, folder: Path, config: Any, dtype: torch.dtype, seed: int, ignore_shapes: bool
) -> tuple[Any, dict[str, Any]]:
    """(the network in `folder`, what of its weights was missing, unknown or of another shape), by an Auto class of transformers: its own code
    only, and safetensors only. What the folder lacks is drawn by `seed`."""
    from danlu.models.initialise import seeded

    with quiet():
        check_parameters(partial(factory.from_config, config), folder)
        with seeded(seed):
            network, report = factory.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=ignore_shapes,
            )
    return network, report


def _load_foreign(
    folder: Path,
    settings: dict[str, Any],
    task: str,
    fresh_head: bool,
    dropout: float | None,
    dtype: torch.dtype,
    seed: int,
    log: Log,
) -> nn.Module:
    """Through transformers. `fresh_head`: a new last layer, whatever the folder holds."""
    from safetensors import SafetensorError

    from danlu.models.foreign import Foreign

    factory, config = _transformers_class(folder, settings, task)
    for key in DROPOUTS:
        if dropout is not None and hasattr(config, key):
            setattr(config, key, dropout)
    try:
        network, report = opened(factory, folder, config, dtype, seed, fresh_head)
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        raise UserError(
            f"{folder}: transformers cannot load it: {last_line(str(error))}", "copy or fetch the model again"
        ) from error
    for part in (*network.parameters(), *network.buffers()):
        part.data = part.data.clone()  # out of the file, which may be replaced meanwhile
    missing, unknown = set(report["missing_keys"]), set(report["unexpected_keys"])
    shapes = {name: tuple(weight.shape) for name, weight in network.named_parameters()}
    last = {name for name in shapes if fresh_head and LAST.search(name)}
    body = {
        name for name in missing - last if name.startswith(f"{network.base_model_prefix}.") and ".pooler." not in name
    }
    if body or (missing - last and not fresh_head):
        raise misfit(folder, body or missing, set(), task)
    if missing - last:
        log(f"new head: {some(missing - last)}, initialised by transformers")
    for name, drawn in _draw(last, shapes, getattr(config, "initializer_range", 0.02), dtype, seed, log).items():
        network.get_parameter(name).data.copy_(drawn)
    if unknown:
        log(f"weights that this task has no use for, not taken over: {some(unknown)}")
    return Foreign(network, task).train()


def _without_code(settings: Any) -> Any:
    """A configuration without what makes transformers fetch programs: `attn_implementation` may name anybody's repository."""
    if isinstance(settings, list):
        return [_without_code(each) for each in settings]
    if not isinstance(settings, dict):
        return settings
    return {
        key: _without_code(value)
        for key, value in settings.items()
        if not key.removesuffix("_internal").endswith("_implementation")
    }


def _transformers_class(folder: Path, settings: dict[str, Any], task: str) -> tuple[Any, Any]:
    """(the Auto class for this task, the configuration)"""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = settings.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise UserError(
            f"{folder}/config.json: model_type {kind!r} is unknown to transformers {transformers.__version__}",
            "code that comes with weights is never run: choose another model, or a newer transformers",
        )
    config = CONFIG_MAPPING[kind].from_dict(_without_code(settings))
    classifies = task == "classification"
    factory: Any = transformers.AutoModelForSequenceClassification if classifies else transformers.AutoModelForCausalLM
    if type(config) not in factory._model_mapping:
        raise UserError(
            f"{folder}: transformers has no {task} model of the kind {kind!r}", "choose another model or another task"
        )
    return factory, config
