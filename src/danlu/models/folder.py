"""A model's folder in the Hugging Face layout: config.json, *.safetensors, and what they hold, looked at before anything is made of it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.core import checkpoint
from danlu.core.cache import read_text, remembered_sha256
from danlu.core.errors import UserError


if TYPE_CHECKING:
    import torch
    from torch import nn

ADAPTED = "base_model.model."
"""What PEFT puts before the names of an adapter's weights."""
READ = ("float16", "bfloat16", "float32", "float64")
"""Types of weights that are read: those that torch computes with everywhere."""
REPEATED = re.compile(
    r"(num|n|encoder|decoder)_(hidden_|encoder_|decoder_)?layers?|depths|(num|n)_(local_|routed_)?experts"
)
"""What config.json calls how often a part is repeated: one number, or one a stage."""
SPARE = 10_000_000
"""Parameters that a network may have beyond twice those of its files: heads to be drawn anew."""
ONE_MODEL = "weights and config.json must be of one model: copy or fetch both again"


def stated_licence(folder: Path) -> str:
    """The licence in `source.json` (ours) or in the model card's front matter."""
    source, card = folder / "source.json", folder / "README.md"
    if source.is_file():
        return str(read_json(source).get("licence") or "not stated")
    if card.is_file():
        with card.open("rb") as file:
            front = file.read(1 << 16).decode("utf-8", "replace").split("\n---", 1)[0]
        if found := re.search(r"^licen[sc]e:\s*[\"']?([^\s\"']+)", front, re.MULTILINE):
            return found[1]
    return "not stated"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder; UserError when there is none."""
    try:
        found = json.loads(read_text(path))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}", "give a folder in the Hugging Face layout") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}", "copy the model again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, expected an object", "copy the model again")
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, the shards its index names, or an adapter's."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
            raise UserError(
                f"{index}: weight_map is not an object of weight: file name", "copy or fetch the model again"
            )
        names = sorted(set(shards.values()))
        if wrong := [name for name in names if "/" in name or not (folder / name).is_file()]:
            raise UserError(
                f"{index} names {len(wrong)} files that are not there, such as {wrong[0]}",
                "copy or fetch the model again",
            )
        return [folder / name for name in names]
    for name in ("model.safetensors", "adapter_model.safetensors"):
        if (folder / name).is_file():
            return [folder / name]
    if pickles := sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]):
        raise UserError(
            f"{folder} has its weights only in {pickles[0].name}: a pickle, which can run code and is never read",
            "take a safetensors version of the model (most have one), or convert it where you trust it: "
            "transformers' save_pretrained writes safetensors",
        )
    raise UserError(
        f"{folder} has no model.safetensors", "give a folder in the Hugging Face layout: config.json and *.safetensors"
    )


def check_repeats(config: Mapping[str, Any], folder: Path) -> None:
    """Each layer and each expert has a tensor at least. Looked at before even an empty network is made, which could go on for ever.

    Raises:
        UserError: config.json asks for more of them than there are tensors.
    """
    most = 64 + sum(len(shapes(file)) for file in weight_files(folder))  # 64: some networks use one layer again
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_repeats(value, folder)
        counts = value if isinstance(value, list) else [value]
        if REPEATED.fullmatch(key) and sum(each for each in counts if isinstance(each, int)) > most:
            raise UserError(
                f"{folder / 'config.json'}: {key} is {str(value)[:80]}, but the weights are {most - 64:,} tensors",
                ONE_MODEL,
            )


def check_parameters(make: Callable[[], nn.Module], folder: Path) -> None:
    """Compare the network that config.json asks for with what the weight files hold; nothing is allocated.

    make: makes it, empty. Raises UserError for one far too large: what is not in the files would be drawn at random.
    """
    import torch

    from danlu.models.initialise import Undrawn

    with torch.device("meta"), Undrawn():
        asked = sum(parameter.numel() for parameter in make().parameters())
    held = sum(math.prod(shape) for file in weight_files(folder) for shape in shapes(file).values())
    if asked > 2 * held + SPARE:
        raise UserError(
            f"{folder / 'config.json'} asks for a network of {asked:,} parameters, and the weights hold {held:,}",
            ONE_MODEL,
        )


def shapes(file: Path) -> dict[str, list[int]]:
    """Of the tensors in a weight file, from its header."""
    with _safe_open(file) as opened:
        return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118 (not a dict)


def weights_sha256(folder: Path) -> str:
    """`Base.sha256` of a folder; remembered in the cache."""
    files = weight_files(folder)
    if len(files) == 1:
        return remembered_sha256(files[0])
    lines = "".join(f"{remembered_sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def read_weights(
    files: Sequence[Path],
    rename: Callable[[list[str]], dict[str, str]],
    wanted: dict[str, tuple[int, ...]],
    skip: set[str],
    dtype: torch.dtype | None,
) -> tuple[dict[str, torch.Tensor], set[str]]:
    """(the wanted tensors as `dtype`, None as they are; the names of all others). Copied out of the files, which may be replaced meanwhile."""
    state: dict[str, torch.Tensor] = {}
    extra, wrong = set(), []
    with ExitStack() as open_files:
        for path in files:
            file = open_files.enter_context(_safe_open(path))
            for raw, name in rename(list(file.keys())).items():
                if name not in wanted or name in skip:
                    extra.add(name)
                elif (shape := tuple(file.get_slice(raw).get_shape())) != wanted[name]:
                    wrong.append(f"{name} is {list(shape)}, expected {list(wanted[name])}")
                else:
                    tensor = file.get_tensor(raw)
                    counter = name.endswith("num_batches_tracked") and not tensor.is_floating_point()
                    state[name] = tensor.to(dtype or tensor.dtype, copy=True)
                    if str(tensor.dtype).removeprefix("torch.") not in READ and not counter:
                        wrong.append(f"{name} is {tensor.dtype}, expected {', '.join(READ)}")
                    elif not checkpoint.finite(state[name]):
                        wrong.append(f"{name} has numbers that are not finite")
    if wrong:
        raise unfit(files[0].parent, wrong)
    return state, extra


def unfit(folder: Path, wrong: Sequence[str]) -> UserError:
    """The error of weights that are not as config.json says."""
    return UserError(f"{folder}: {len(wrong)} weights do not fit config.json: {'; '.join(wrong[:5])}", ONE_MODEL)


def _safe_open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise UserError(
            f"{path} is damaged, most likely cut short: {error}", "copy or fetch the model again"
        ) from error


def some(names: set[str]) -> str:
    """The first few, and how many more there are."""
    first = sorted(names)[:6]
    return ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")


def labels_of(config: dict[str, Any]) -> list[str] | None:
    """A classifier's labels in the order of its outputs."""
    named = config.get("id2label")
    return [named[key] for key in sorted(named, key=int)] if named else None


def label_keys(labels: Sequence[str]) -> dict[str, Any]:
    """What a classifier's config.json says about its labels."""
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }
