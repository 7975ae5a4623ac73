"""From a model's place to a network ready to train, to answer or to be merged; adapters found and put on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.core.errors import UserError, reading
from danlu.core.run import Run
from danlu.core.types import CLASSIFIERS
from danlu.models.base import Base, resolve
from danlu.models.folder import labels_of, read_json, shapes, weight_files, weights_sha256
from danlu.models.options import THEIRS


if TYPE_CHECKING:
    import torch

    from danlu.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Weights:
    """Where the weights of a model lie.

    folder: whole weights and config.json. adapter: the folder of an adapter on them, or None. base: how an adapter names
    these whole weights. context: longest document in tokens. parameters: of the whole weights. vocabulary: rows of the
    embedding, as far as config.json says. bidirectional: an encoder, in which each token sees those behind it.
    """

    folder: Path
    adapter: Path | None
    base: dict[str, Any]
    context: int
    parameters: int
    vocabulary: int | None = None
    bidirectional: bool = False

    def check_vocabulary(self, tokens: int) -> None:
        """A token needs its row in the embedding. An added token without one, that no row uses, does no harm: Gemma 3 has such a one."""
        if self.vocabulary is not None and tokens > self.vocabulary:
            raise UserError(
                f"{self.folder}: the tokenizer has {tokens} tokens, the model's embedding {self.vocabulary} rows (vocab_size in config.json)",
                "the tokenizer belongs to another model: copy or download the folder again, as a whole",
            )

    def check_length(self, max_tokens: int | None, name: str) -> None:
        """A row can be no longer than what the model sees at once. name: of the model."""
        if max_tokens is not None and max_tokens > self.context:
            raise UserError(
                f"max_tokens={max_tokens}, but {name} reads at most {self.context} tokens",
                f"set max_tokens={self.context} or less",
            )


def adapter_of(folder: Path) -> dict[str, Any] | None:
    """adapter_config.json of a model folder and, as `danlu_base`, what it belongs to; None when the folder holds whole weights."""
    if not (folder / "adapter_config.json").is_file():
        return None
    config, base = read_json(folder / "adapter_config.json"), folder / "danlu_base.json"
    return config | {"danlu_base": read_json(base)} if base.is_file() else config


def weights_of(base: Base, say: Callable[[str], None] = print) -> Weights:
    """Follow an adapter to the whole weights it belongs to.

    Raises:
        UserError: those are not to be had, or are not the ones the adapter was trained on.
    """
    with reading(base.folder):
        adapter = adapter_of(base.folder)
        if adapter is None:
            return _whole(base)
    named = adapter.get("danlu_base") or {"name": adapter.get("base_model_name_or_path"), "sha256": None}
    if not isinstance(named.get("name"), str) or not isinstance(named.get("sha256"), str | None):
        raise UserError(f"{base.folder}: its adapter names no base model", "copy the folder again, as a whole")
    below = _same_folder(named) or _below(base, named, say)
    if adapter_of(below.folder) is not None:
        raise UserError(
            f"{base.folder}: an adapter on an adapter ({below.folder})", f"`danlu merge {below.name}` first"
        )
    return replace(weights_of(below, say), adapter=base.folder)


def _same_folder(named: dict[str, Any]) -> Base | None:
    """The folder the adapter was trained on, if its weights are still there: a relative name means another one elsewhere."""
    folder, wanted = named.get("folder"), named.get("sha256")
    if not wanted or not isinstance(folder, str) or not Path(folder).is_absolute():
        return None
    try:
        found = weights_sha256(Path(folder))
    except (UserError, OSError, ValueError):  # its name may still lead to the weights
        return None
    return Base(named["name"], Path(folder), found, "", "folder") if found == wanted else None


def _below(base: Base, named: dict[str, Any], say: Callable[[str], None]) -> Base:
    try:
        below = resolve(named["name"], say)
    except UserError as error:
        raise UserError(
            f"{base.folder}: its adapter belongs to {named['name']}, which is not here: {error.message}", error.fix
        ) from None
    if named.get("sha256") and below.sha256 != named["sha256"]:
        raise UserError(
            f"{base.folder}: its adapter belongs to {named['name']} with SHA-256 {named['sha256'][:12]}…, found {below.sha256[:12]}…",
            "use the model it was trained on; `danlu merge` makes a run independent of its base",
        )
    return below


def _whole(base: Base) -> Weights:
    from danlu.models import encoder

    config = read_json(base.folder / "config.json")
    _check_numbers(base.folder / "config.json", config)
    context = _count(base, config, "max_position_embeddings", "n_positions") or 2048
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
        context -= 2  # positions start behind the padding token's
    named = {"name": base.name, "sha256": base.sha256, "folder": str(base.folder.resolve())}
    vocabulary, bidirectional = _count(base, config, "vocab_size"), encoder.supports(config)
    return Weights(base.folder, None, named, context, count_parameters(base.folder), vocabulary, bidirectional)


def _check_numbers(file: Path, config: dict[str, Any]) -> None:
    """What would fail only in the first forward pass, in words nobody understands, or never come to an end."""
    for key in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta"):
        value = config.get(key, 1.0)
        if value is None and key == "rope_theta":
            continue
        if type(value) not in (int, float) or not 0 < value < 1e12:
            raise UserError(f"{file}: {key} is {value!r}, expected a number above 0", "copy or fetch the model again")
    for key, most in (("num_hidden_layers", 10_000), ("num_attention_heads", 10_000), ("hidden_size", 10_000_000)):
        value = config.get(key, 1)
        if not isinstance(value, list) and (type(value) is not int or not 1 <= value <= most):  # a list: one a layer
            raise UserError(
                f"{file}: {key} is {value!r}, expected a whole number between 1 and {most:,}",
                "copy or fetch the model again",
            )


def _count(base: Base, config: dict[str, Any], *keys: str) -> int | None:
    """The first of these settings of config.json that is there."""
    found = next(((key, config[key]) for key in keys if config.get(key)), None)
    if found is None:
        return None
    if type(found[1]) is not int or found[1] < 1:
        raise UserError(
            f"{base.folder / 'config.json'}: {found[0]} is {found[1]!r}, expected a whole number of at least 1",
            "copy or fetch the model again",
        )
    return found[1]


def count_parameters(folder: Path) -> int:
    """Summed over the headers of the weight files; nothing is read into memory."""
    return sum(math.prod(shape) for file in weight_files(folder) for shape in shapes(file).values())


def open_weights(
    weights: Weights,
    task: str,
    labels: Sequence[str] | None,
    *,
    dropout: float | None = None,
    seed: int = 0,
    merged: bool = True,
    new_head: bool = False,
    say: Callable[[str], None] = print,
    network: Any = None,
) -> Any:
    """The network on its device; an adapter is put on and, if `merged`, added into the weights. network: the code of a person's own."""
    import torch

    from danlu.models.pretrained import load
    from danlu.surgery import adapter

    kind = "classification" if task in CLASSIFIERS else "language"
    quiet = (lambda _: None) if weights.adapter is not None else say
    with reading(weights.folder):
        chosen: dict[str, Any] = {"labels": labels, "dropout": dropout, "seed": seed, "new_head": new_head}
        model: Any = load(weights.folder, task=kind, log=quiet, network=network, **chosen)
    if weights.adapter is not None:
        with reading(weights.adapter):
            adapter.load(model, weights.adapter)
        if merged:
            adapter.merge(model)
    if (merged or weights.adapter is None) and model.config.get("model_type") != THEIRS:
        model.requires_grad_(True)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Opened:
    """A run's final model, ready to answer."""

    run: Run
    model: Any
    tokenizer: Tokenizer
    task: str
    labels: tuple[str, ...]
    precision: torch.dtype
    max_tokens: int
    system: str | None = None
    text_column: str | None = None


def open_final(run: Run, precision: str | None = None, merged: bool = False, network: Any = None) -> Opened:
    """The final model of a run, in evaluation mode, in the precision it was evaluated in unless told otherwise.

    network: the code of a person's own.

    Raises:
        UserError: the run has none yet, or it has changed since it was written.
    """
    import torch

    from danlu.data.tokenizer import Tokenizer
    from danlu.surgery.freeze import cast_frozen

    found = sealed(run)
    facts, used = run.read("run.json"), run.settings()
    torch.set_num_threads(int(used["threads"] or 1))
    name = precision or used["precision"]
    labels = tuple(facts.get("labels") or ())
    weights = weights_of(Base(str(run.path), run.model, found, "", "run"))
    with reading(run.model):
        whole = adapter_of(run.model) is None
        named = tuple(labels_of(read_json(run.model / "config.json")) or ()) if whole and labels else labels
    if named != labels:
        raise UserError(
            f"{run.path}: run.json has the labels {', '.join(labels)}, model/config.json has others",
            "restore the folder from a copy of the run",
        )
    model = open_weights(weights, facts["task"], labels or None, merged=merged, network=network)
    model.requires_grad_(False)
    kind: torch.dtype = getattr(torch, name)
    if kind != torch.float32 and model.config.get("model_type") != THEIRS:  # a person's own code expects what it made
        cast_frozen(model, kind, keep="lora_")
    return Opened(
        run,
        model.eval(),
        Tokenizer.load(run.model),
        facts["task"],
        labels,
        kind,
        int(used["max_tokens"] or weights.context),
        used["system"],
        used["text"],
    )


def sealed(run: Run) -> str:
    """The SHA-256 of a run's final weights, which are those it was sealed with.

    Raises:
        UserError: it has none yet, or they have changed.
    """
    if not run.has("final.json"):
        fix = "wait until it is finished" if run.status == "running" else f"danlu resume {run.path}"
        raise UserError(f"{run.path} has no final model yet (it is {run.status})", fix)
    expected, found = run.read("final.json")["sha256"], weights_sha256(run.model)
    if found != expected:
        raise UserError(
            f"{run.model}: the weights have SHA-256 {found[:12]}…, expected {expected[:12]}…",
            "restore the folder from a copy of the run",
        )
    return found


def seal(run: Run) -> None:
    """Write down what the final model is, last of all: a run with final.json has a whole one."""
    run.write(
        "final.json", {"sha256": weights_sha256(run.model), "files": sorted(path.name for path in run.model.iterdir())}
    )
