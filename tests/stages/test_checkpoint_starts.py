"""A checkpoint in the middle of a run is a model: the very one that a run ended there has."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from danlu.models.base import resolve
from danlu.models.folder import weight_files


HALF = ("steps=2", "warmup=0", "schedule=constant", "validate_every=2", "patience=none")
WHOLE = ("steps=4", *HALF[1:])


@pytest.mark.parametrize(
    "settings", [("method=lora",), ("method=full",), ("method=full", "freeze=embeddings,layers.0")]
)
def test_of_a_chat_run(settings, chat_run, chat_file, danlu, monkeypatch, tmp_path):
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    half, whole = chat_run(*settings, *HALF, out="half"), chat_run(*settings, *WHOLE, out="whole")
    name = f"{whole}/checkpoints/step-00000002"
    one, two = resolve(name).folder, half / "model"
    (mine,), (theirs,) = weight_files(one), weight_files(two)
    assert mine.name == theirs.name
    ours, expected = load_file(mine), load_file(theirs)
    assert ours.keys() == expected.keys()
    assert all(ours[key].equal(tensor) for key, tensor in expected.items())
    on = danlu("finetune", "chat", f"model={name}", f"data={chat_file}", "steps=1", "answers=0", "out=on")
    assert on.code == 0, on.err


def test_of_a_classifier_and_a_damaged_one_is_refused(text_run, text_file, danlu, monkeypatch, tmp_path):
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    half, whole = text_run(*HALF, out="half"), text_run(*WHOLE, out="whole")
    start = whole / "checkpoints" / "step-00000002"
    ours, expected = (load_file(weight_files(folder)[0]) for folder in (resolve(str(start)).folder, half / "model"))
    assert ours.keys() == expected.keys()
    assert all(ours[key].equal(tensor) for key, tensor in expected.items())
    weights = start / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    refused = danlu("finetune", "text-classification", f"model={start}", f"data={text_file}", "out=on")
    assert refused.code == 2 and "weights.safetensors has changed since it was written" in refused.err
