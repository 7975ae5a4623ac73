"""Folders of models as they must not be: each is one clear error that names the folder, never a fault of ours."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.core.errors import UserError
from danlu.data.tokenizer import Tokenizer
from danlu.models.base import resolve
from danlu.models.options import ModelOptions
from danlu.stages.load import open_weights, weights_of
from danlu.surgery import adapter


def quiet(_: str) -> None: ...


def opened(folder: Path, task: str = "chat") -> torch.Tensor:
    """All that a run does with a model's folder, up to the first logits."""
    weights = weights_of(resolve(str(folder), quiet), quiet)
    Tokenizer.load(weights.folder)
    model = open_weights(weights, task, None if task == "chat" else ["a", "b"], say=quiet)
    with torch.no_grad():
        return model.logits(model(torch.tensor([1, 2, 3]), (1, 2)))  # type: ignore[no-any-return]


def set_to(file: str, **values: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        place = folder / file
        before = json.loads(place.read_text()) if place.exists() else {}
        place.write_text(json.dumps({**before, **values}))

    return change


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])


CONFIG = [
    {"hidden_size": "x"},
    {"num_attention_heads": 0},
    {"max_position_embeddings": "big"},
    {"vocab_size": "many"},
    {"hidden_act": "eval"},
    {"model_type": ["a"]},
    {"id2label": [1]},
    {"layer_norm_eps": "small", "rms_norm_eps": "small"},
    {"head_dim": "x"},
    {"rope_theta": "x"},
    {"rope_scaling": 5},
    {"eos_token_id": [[1]]},
    {"eos_token_id": "end"},
    {"num_hidden_layers": 10**12},
    {"num_hidden_layers": -1},
    {"vocab_size": 10**30},
]
DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "empty": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "junk": lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 999),
    "bomb": lambda folder: (folder / "config.json").write_text('{"a":' + "[" * 100_000),
    "index": set_to("model.safetensors.index.json", weight_map=[1]),
    "index of lists": set_to("model.safetensors.index.json", weight_map={"a": ["b"]}),
    "tokens": set_to("tokenizer_config.json", added_tokens_decoder=[1]),
    "token": set_to("tokenizer_config.json", added_tokens_decoder={"1": {"content": 5}}),
    "templates": set_to("tokenizer_config.json", chat_template=[1]),
    "template": set_to("tokenizer_config.json", chat_template=[{"name": "default", "template": 5}]),
} | {str(values): set_to("config.json", **values) for values in CONFIG}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_folder_is_named(damage: Callable[[Path], object], chatter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(chatter, tmp_path / "model"))
    damage(folder)
    with pytest.raises(UserError) as error:
        opened(folder)
    assert str(folder) in error.value.message and error.value.fix


@pytest.mark.parametrize("values", [*CONFIG[:8], {"type_vocab_size": "x"}], ids=str)
def test_a_damaged_encoder_is_named(values: dict[str, Any], sorter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sorter, tmp_path / "model"))
    set_to("config.json", **values)(folder)
    with pytest.raises(UserError, match="model"):
        opened(folder, "classification")


@pytest.fixture
def adapted(chatter: Path, tmp_path: Path) -> Path:
    """An adapter on a base that was given by a relative name."""
    base = Path(shutil.copytree(chatter, tmp_path / "base"))
    weights = weights_of(resolve(str(base), quiet), quiet)
    model = adapter.add_lora(open_weights(weights, "chat", None, merged=False, say=quiet), ModelOptions(rank=2), 0)
    adapter.save(model, tmp_path / "adapter", {**weights.base, "name": "./base"})
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("danlu_base.json", {"name": 5}),
        ("danlu_base.json", {"sha256": 5}),
        ("danlu_base.json", {"name": "ITSELF", "sha256": None}),
        ("adapter_config.json", {"target_modules": None}),
        ("adapter_config.json", {"target_modules": [5]}),
        ("adapter_config.json", {"r": "x"}),
        ("adapter_config.json", {"lora_alpha": [1]}),
        ("adapter_config.json", {"modules_to_save": 5}),
    ],
)
def test_a_damaged_adapter_is_named(file: str, values: dict[str, Any], adapted: Path) -> None:
    set_to(file, **{key: str(adapted) if value == "ITSELF" else value for key, value in values.items()})(adapted)
    with pytest.raises(UserError) as error:
        opened(adapted)
    assert str(adapted) in error.value.message and error.value.fix


@pytest.mark.parametrize("named", [{}, {"base_model_name_or_path": None}])
def test_an_adapter_without_a_base_is_named(named: dict[str, Any], adapted: Path) -> None:
    (adapted / "danlu_base.json").unlink()
    config = json.loads((adapted / "adapter_config.json").read_text())
    del config["base_model_name_or_path"]
    (adapted / "adapter_config.json").write_text(json.dumps(config | named))
    with pytest.raises(UserError, match="names no base model"):
        opened(adapted)


def test_a_base_with_a_relative_name_is_found_from_elsewhere_by_its_folder(
    adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert opened(adapted).isfinite().all()
    file = tmp_path / "base" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\1\1")
    with pytest.raises(UserError, match="which is not here"):
        opened(adapted)


def test_a_folder_is_written_down_without_detours(chatter: Path) -> None:
    weights = weights_of(resolve(str(chatter / ".." / chatter.name), quiet), quiet)
    assert weights.base["folder"] == str(chatter.resolve())


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 3000, "~nobody-at-all/model"])
def test_a_name_no_file_can_have(name: str) -> None:
    with pytest.raises(UserError, match="no model can have this name") as error:
        resolve(name, quiet)
    assert len(error.value.message) < 300


def test_a_rank_wider_than_every_layer(chatter: Path) -> None:
    weights = weights_of(resolve(str(chatter), quiet), quiet)
    model = open_weights(weights, "chat", None, say=quiet)
    with pytest.raises(UserError, match=r"rank=65: wider .* has 64"):
        adapter.add_lora(model, ModelOptions(rank=65), 0)
    adapter.add_lora(model, ModelOptions(rank=64), 0)


@pytest.mark.parametrize(
    ("name", "keys", "value", "says"),
    [
        ("run.json", ("task",), None, "task is null, expected text"),
        ("run.json", ("lineage", "data"), {}, r"lineage\.data is \{\}, expected a list"),
        ("run.json", ("labels",), ["a", 7], r"labels\.1 is 7, expected text"),
        ("experiment.json", ("used",), [], r"used is \[\], expected an object"),
        ("experiment.json", ("used", "threads", "value"), -1, r"threads\.value is -1, expected a whole number from 1 to"),
        ("experiment.json", ("used", "precision", "value"), "load", r"precision\.value is \"load\", expected 'float32' or"),
        ("experiment.json", ("used", "bad_rows"), ..., r"used\.bad_rows is missing"),
        ("data.json", ("splits",), {"train": "7"}, r"splits\.train is \"7\", expected a whole number"),
        ("evaluation.json", ("metrics", "accuracy", "low"), "x", r"metrics\.accuracy\.low is \"x\", expected a number"),
        ("final.json", ("sha256",), 5, "sha256 is 5, expected text"),
        ("final.json", ("sha256",), ..., "sha256 is missing"),
    ],
)  # fmt: skip
def test_a_key_that_is_missing_or_of_another_kind_is_named(text_run, danlu, name, keys, value, says):
    run = text_run()
    content = json.loads((run / name).read_text("utf-8"))
    place = content
    for key in keys[:-1]:
        place = place[key]
    place.pop(keys[-1]) if value is ... else place.update({keys[-1]: value})
    (run / name).write_text(json.dumps(content), "utf-8")
    readers = {"data.json": ("report",), "evaluation.json": ("runs compare", "report"), "final.json": ("predict",)}
    for command in readers.get(name, ("predict", "evaluate", "resume")):
        words = {"predict": ["a text"], "runs compare": [run]}.get(command, [])
        result = danlu(*command.split(), run, *words)
        assert result.code == 2, (command, result.err)
        assert re.search(rf"{re.escape(str(run / name))}: (the key )?\S*{says}", result.err), (command, result.err)
    assert danlu("runs").code == 0
