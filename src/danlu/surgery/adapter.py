"""Adapters: small trained weights beside frozen ones, in PEFT's layout."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from danlu.core.errors import UserError
from danlu.models.folder import ADAPTED, read_json
from danlu.models.linear import LoRA
from danlu.models.options import ModelOptions
from danlu.surgery.freeze import head_of, matches


CONFIG = "adapter_config.json"
BASE = "danlu_base.json"
"""The model an adapter belongs to, with its SHA-256; a file of its own, because PEFT warns of keys it does not know."""

BEYOND = (
    "use_rslora", "use_dora", "use_qalora", "use_bdlora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "layer_replication",
    "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "velora_config", "target_parameters",
)  # fmt: skip
"""What in an adapter's config.json changes the formula of `add_lora`."""


def add_lora(model: torch.nn.Module, options: ModelOptions, seed: int) -> torch.nn.Module:
    """LoRA (Hu et al. 2021): W x + (alpha / rank) B A x with W frozen, B zero at first. A task's new head is trained whole.

    Raises:
        UserError: `lora_targets` names no linear layer of this model, or `rank` is wider than all it names.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    body = [name for name in linear if not matches(f"{name}.weight", "head")]
    wanted = options.lora_targets
    targets = (
        body if wanted == ("all-linear",) else [n for n in body if any(n == w or n.endswith(f".{w}") for w in wanted)]
    )
    missing = [w for w in wanted if w != "all-linear" and not any(n == w or n.endswith(f".{w}") for n in body)]
    if missing or not targets:
        names = sorted({name.rsplit(".", 1)[-1] for name in body})
        raise UserError(
            f"lora_targets: {missing[0] if missing else wanted} names no linear layer",
            f"this model has {', '.join(names)}",
        )
    widest = max(max(model.get_parameter(f"{name}.weight").shape) for name in targets)
    if options.rank > widest:
        raise UserError(
            f"rank={options.rank}: wider than every layer it would adapt (the widest has {widest})",
            f"give a rank of at most {widest}; 4 to 64 is usual",
        )
    heads = {name: p for name, p in model.named_parameters() if matches(name, "head")}
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    for name in targets:
        replace(model, name, LoRA(model.get_submodule(name), options.rank, options.alpha, options.lora_dropout))  # type: ignore[arg-type]
    torch.set_rng_state(state)
    classifier = getattr(model, "task", "") == "classification"
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or (classifier and name in heads))
    return model


def replace(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    """Put `module` in the place of the submodule called `name`; it trains if the other did."""
    parent, _, leaf = name.rpartition(".")
    module.train(model.get_submodule(name).training)
    setattr(model.get_submodule(parent), leaf, module)


def layers(model: torch.nn.Module) -> dict[str, LoRA]:
    """The adapted layers by name; empty for a model without an adapter."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRA)}


@contextlib.contextmanager
def switched_off(model: torch.nn.Module) -> Iterator[None]:
    """The base model as it was, inside."""
    found = layers(model).values()
    for layer in found:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in found:
            layer.enabled = True


def merge(model: torch.nn.Module) -> torch.nn.Module:
    """W + (alpha / rank) B A in place of both, in float32; the model has plain layers again."""
    for name, layer in layers(model).items():
        base = layer.base_layer
        base.weight.data = base.weight.data.float() + layer.added().detach().float()
        replace(model, name, base)
    return model


def plain_name(name: str) -> str:
    """A weight's Hugging Face name, without what the adapter puts into it."""
    return name.replace(".base_layer.", ".")


def short_names(model: torch.nn.Module, targets: list[str]) -> list[str]:
    """`q_proj` instead of its thirty paths, where the last part of the name means exactly the adapted layers."""
    leaves = {name.rsplit(".", 1)[-1] for name in targets}
    meant = [n for n, module in model.named_modules() if n.rsplit(".", 1)[-1] in leaves and n not in targets]
    clash = [n for n in meant if isinstance(model.get_submodule(n), torch.nn.Linear) and ".base_layer" not in n]
    return sorted(targets if clash else leaves)


def save(model: torch.nn.Module, folder: Path, base: dict[str, Any]) -> None:
    """adapter_config.json and adapter_model.safetensors, as PEFT reads them, and danlu_base.json.

    base: {"name", "sha256", "folder"}: the model the adapter belongs to; it goes into danlu_base.json, so that equal
    weights are an equal file.
    """
    from safetensors.torch import save_file

    found = layers(model)
    first = next(iter(found.values()))
    classifier = getattr(model, "task", "") == "classification"
    kept = {  # frozen ones too: whoever loads this has only the base
        name: p
        for name, p in model.named_parameters()
        if p.requires_grad or "lora_" in name or (classifier and matches(name, "head"))
    }
    heads = sorted({str(head_of(name)) for name in kept if "lora_" not in name})
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {ADAPTED + plain_name(name): p.detach().float().contiguous().cpu() for name, p in kept.items()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})  # two entries would come in any order
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if classifier else "CAUSAL_LM",
        "base_model_name_or_path": base["name"],
        "revision": None,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": first.dropout,
        "target_modules": short_names(model, list(found)),
        "modules_to_save": heads or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    for name, content in ((CONFIG, config), (BASE, base)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def load(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """Put the adapter in `folder` on its base model.

    Raises:
        UserError: the adapter is of another kind, or its weights do not fit this model.
    """
    from safetensors.torch import load_file

    config = read_json(folder / CONFIG)
    if missing := [key for key in ("peft_type", "r", "lora_alpha", "target_modules") if key not in config]:
        raise UserError(f"{folder / CONFIG} has no {missing[0]!r}", "copy the adapter again, as a whole")
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"{folder}: adapter of type {config.get('peft_type')!r}, expected LORA", "merge it with PEFT first"
        )
    beyond = [key for key in BEYOND if config.get(key)]
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        beyond.append("init_lora_weights")  # pissa, olora and the like change the base weights themselves
    targets = config["target_modules"]
    if beyond or not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise UserError(
            f"{folder}/adapter_config.json: {(beyond or ['target_modules'])[0]}: this kind of LoRA would be computed otherwise here",
            "merge it with PEFT first",
        )
    options = ModelOptions(
        rank=config["r"],
        alpha=config["lora_alpha"],
        lora_dropout=config.get("lora_dropout", 0.0),
        lora_targets=tuple(targets),
    )
    add_lora(model, options, seed=0)
    names = {ADAPTED + plain_name(name): p for name, p in model.named_parameters() if "lora_" in name}
    heads = config.get("modules_to_save") or []
    names |= {ADAPTED + name: p for name, p in model.named_parameters() if head_of(name) in heads}
    tensors = load_file(folder / "adapter_model.safetensors")
    wrong = set(names) ^ set(tensors) or {n for n in names if names[n].shape != tensors[n].shape}
    if wrong:
        raise UserError(
            f"{folder}/adapter_model.safetensors does not fit this model: {min(wrong)}",
            "use the base model it names",
        )
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(tensors[name])
    return model
