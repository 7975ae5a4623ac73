"""A person's own network from the command line and Python: trained, asked, resumed bit for bit, and never named by a run."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import pytest
from PIL import Image

import danlu as python
from danlu.core.errors import UserError
from danlu.core.run import open_run
from danlu.core.track import read_lines
from danlu.stages.serve import answering


TORCH = """
import random

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, channels, size, labels):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.project = nn.Linear(4 * ((size - 2) // 2) ** 2, 16)
        self.project.weight.data.mul_(random.random())
        self.project.requires_grad_(False)
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(16, labels)
        self.register_buffer("step", torch.zeros(()))

    def forward(self, images):
        if self.training:
            self.step += 1
        return self.fc(self.dropout(self.project(self.body(images)))) / (1 + self.step / 100)
"""
KERAS = """
import keras

layers = keras.layers


def Net(channels, size, labels):
    return keras.Sequential([
        keras.Input((size, size, channels)),
        layers.RandomTranslation(0.1, 0.1, seed=3),
        layers.Conv2D(4, 3, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dropout(0.3, seed=1),
        layers.Dense(labels),
    ])
"""
SETTINGS = ("precision=float32", "threads=1", "batch_size=16", "validate_every=5", "patience=none")


@pytest.fixture
def own(danlu, tmp_path, monkeypatch):
    """`own(TORCH)`: a module in the current folder, as a fresh process would see it; returns `module:Net`."""
    before, path = set(sys.modules), [*sys.path]
    monkeypatch.setattr(sys, "path", [each for each in path if each])

    def write(text=TORCH, name="theirs_in_stages"):
        (tmp_path / f"{name}.py").write_text(text)
        return f"{name}:Net"

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("theirs_"):
            del sys.modules[name]


def train(danlu, digits, code, *more, out="run", steps=10):
    found = danlu("pretrain", "image-classification", f"model={code}", f"data={digits}", *SETTINGS, f"steps={steps}", "baselines=no", f"out={out}", *more)  # fmt: skip
    assert found.code == 0, found.err + found.out
    return found


def picture(digits, tmp_path):
    with np.load(digits) as found:
        Image.fromarray(found["images"][0]).save(tmp_path / "a.png")
    return "a.png"


def outcome(run):
    """What must be equal, bit for bit."""
    names = ["metrics.jsonl", "evaluation.json", "model/model.safetensors", "model/config.json"]
    return {name: (run / name).read_bytes() for name in names}


def test_it_learns_answers_and_starts_another_run(own, danlu, digits, tmp_path):
    code = own()
    said = train(danlu, digits, code, steps=60)
    assert said.out.rstrip().endswith(f"network={code})")
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["metrics"]["accuracy"]["value"] > 0.25
    again = danlu("evaluate", "run", f"network={code}", "--json")
    assert again.json["metrics"] == found["metrics"]
    image = picture(digits, tmp_path)
    (answer,) = danlu("predict", "run", image, f"network={code}", "--json").json
    assert answering(open_run("run"), code)([tmp_path / image])[0]["probabilities"] == answer["probabilities"]
    with np.load(digits) as held:
        np.savez("odd.npz", images=held["images"], labels=held["labels"] % 2)
    more = ("gain_seeds=2", f"network={code}", "steps=10", "out=odd")
    odd = danlu("finetune", "image-classification", "model=run", "data=odd.npz", *SETTINGS, *more)
    assert odd.code == 0, odd.err
    assert "new head: fc.bias, fc.weight" in odd.out
    assert json.loads((tmp_path / "odd" / "evaluation.json").read_text())["transfer"]["rows"][0]["random"]
    start = min((tmp_path / "run" / "checkpoints").glob("step-*"))
    middle = danlu("finetune", "image-classification", f"model={start}", "data=odd.npz", *SETTINGS, f"network={code}", "steps=2", "gain_seeds=0", "out=m")  # fmt: skip
    assert middle.code == 0, middle.err


@pytest.mark.parametrize("text", [TORCH, KERAS], ids=["torch", "keras"])
def test_a_killed_run_goes_on_bit_for_bit(text, own, danlu, digits, spawn, tmp_path):
    """Weights, statistics, a counter in a buffer, frozen weights, random seeds of Keras's layers; killed twice."""
    code = own(text, f"theirs_{'keras' if 'keras' in text else 'torch'}")
    train(danlu, digits, code, "augment=crop", steps=40)
    words = ["pretrain", "image-classification", f"model={code}", f"data={digits}", *SETTINGS, "steps=40", "baselines=no", "augment=crop", "out=killed"]  # fmt: skip
    run = tmp_path / "killed"
    for least in (5, 15):
        process = spawn(words if least == 5 else ["resume", "killed", f"network={code}"], tmp_path)
        deadline = time.monotonic() + 120
        while process.is_alive() and time.monotonic() < deadline:
            if list(run.glob(f"checkpoints/step-*{least}")) and len(read_lines(run / "metrics.jsonl")) > least + 1:
                break
            time.sleep(0.002)
        assert process.is_alive(), (tmp_path / "said.txt").read_text()
        process.kill()
        process.join()
    refused = danlu("resume", "killed")
    assert refused.code == 2 and "network=module:object" in refused.err
    done = danlu("resume", "killed", f"network={code}")
    assert done.code == 0 and "going on from step" in done.out, done.err
    assert outcome(run) == outcome(tmp_path / "run")


def test_a_run_names_no_code_that_is_run(own, danlu, digits, tmp_path, capsys):
    """Every file of a run is changed to name another module: it is never imported, with or without code in the command."""
    code = own()
    evil = own("from pathlib import Path\n\nPath('ran').touch()\n" + TORCH, "theirs_evil")
    train(danlu, digits, code)
    for place in (tmp_path / "run").rglob("*.json"):
        text = place.read_text()
        if place.name != "manifest.json":
            place.write_text(text.replace(code, evil))
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**facts, "status": "interrupted"}))
    image = picture(digits, tmp_path)
    ways = [
        ["evaluate", "run"],
        ["predict", "run", image],
        ["resume", "run"],
        ["finetune", "image-classification", "model=run", f"data={digits}", "steps=1", "out=new"],
    ]
    for way in ways:
        found = danlu(*way)
        assert found.code == 2 and f"a person's own ({evil})" in found.err, found.err + found.out
    with pytest.raises(UserError, match="network=module:object"):
        answering(open_run("run"))
    for way in ways:
        found = danlu(*way, f"network={code}")
        assert found.code == 0, found.err
    for way in (["show", "run"], ["runs"], ["report", "run"]):
        assert danlu(*way).code == 0
    assert not (tmp_path / "ran").exists() and "theirs_evil" not in sys.modules


def test_a_file_of_settings_names_no_code_either(own, danlu, digits, tmp_path):
    evil = own("from pathlib import Path\n\nPath('ran').touch()\n" + TORCH, "theirs_evil")
    (tmp_path / "a.yaml").write_text(f"recipe: image-classification\nmodel: {evil}\ndata: {digits}\n")
    found = danlu("pretrain", "a.yaml", "steps=1")
    assert found.code == 2 and "code that a run or a file names is never run" in found.err
    (tmp_path / "a.yaml").write_text(f"recipe: image-classification\nnetwork: {evil}\ndata: {digits}\n")
    found = danlu("pretrain", "a.yaml", "steps=1")
    assert found.code == 2 and "unknown key 'network'" in found.err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["pretrain", "image-classification", "model=theirs_in_stage:Net"], "did you mean 'theirs_in_stages'"),
        (["pretrain", "image-classification", "model=theirs_in_stages:Nte"], "did you mean 'Net'"),
        (["pretrain", "image-classification", "model={code}", "hidden=3"], "hidden=(3,): theirs_in_stages:Net does not"),
        (["pretrain", "image-classification", "model={code}", "network=a:b"], "name two codes"),
        (["pretrain", "mlp", "network={code}"], "but the network is a danlu_mlp"),
        (["pretrain", "autoencoder", "model={code}"], "does not learn autoencoder"),
        (["finetune", "text-classification", "model={code}"], "does not learn text-classification"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_before_anything_is_trained(words, told, own, danlu, digits, tmp_path):
    code = own()
    found = danlu(*[word.format(code=code) for word in words], f"data={digits}", "out=run")
    assert found.code == 2 and told in found.err, found.err
    assert not (tmp_path / "run").exists()


def test_from_python_it_is_the_function_itself(own, danlu, digits, tmp_path, capsys):
    from torch import nn

    def build(channels, size, labels):
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, labels))

    settings = {"precision": "float32", "threads": 1, "steps": 20, "baselines": False, "out": tmp_path / "py"}
    run = python.pretrain("image-classification", digits, model=build, **settings)
    assert run.evaluate(network=build)["metrics"] == json.loads((run.path / "evaluation.json").read_text())["metrics"]
    with np.load(digits) as found:
        (answer,) = run.predict(found["images"][:1], network=lambda *given: build(*given))
    assert answer["label"] in {str(number) for number in range(10)}
    assert python.pretrain("image-classification", digits, model=build, **settings).status == "finished"
    with pytest.raises(UserError, match="network=module:object"):
        run.evaluate()


BREAKS = TORCH.replace(
    "return self.fc(",
    "brittle = (1000 * images.detach().double().abs().sum((1, 2, 3))).long() % 37 == 0\n"
    "        return torch.where(brittle[:, None] & self.training, torch.nan, 1) * self.fc(",
)


def test_rows_that_break_a_network_are_passed_by_and_named(own, danlu, digits, spawn, tmp_path):
    """Some images make its output NaN while it learns: those updates are skipped, in the file and on the page; killed, bit for bit the same."""
    code = own(BREAKS, "theirs_breaks")
    said = train(danlu, digits, code, steps=40)
    lines = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "validation" not in line]
    skipped = [line for line in lines if "skipped" in line]
    assert 3 <= len(skipped) < 35 and len(lines) == 40
    assert all(line["rows"] and "not finite" in line["skipped"] and "loss" not in line for line in skipped)
    rows = {row for line in skipped for row in line["rows"]}
    assert not [line for line in lines if "loss" in line and line["loss"] != line["loss"]]
    assert f"step {skipped[0]['step']}: update skipped, no weight changed: loss nan" in said.err
    assert f"(rows {skipped[0]['rows'][0]}" in said.err and len(rows) < 60
    assert f"{len(skipped)} updates in 40 steps were skipped because of their numbers" in said.out
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert f"{len(skipped)} updates skipped because of their numbers" in page
    words = ["pretrain", "image-classification", f"model={code}", f"data={digits}", *SETTINGS, "steps=40", "baselines=no", "out=killed"]  # fmt: skip
    process = spawn(words, tmp_path)
    while len(list((tmp_path / "killed" / "checkpoints").glob("step-*"))) < 2 and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    resumed = danlu("resume", "killed", f"network={code}")
    assert resumed.code == 0, resumed.err
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "run")
