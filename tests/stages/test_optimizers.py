"""What a person sets of optimizer, schedule and moving average, through the command line."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from danlu.core.track import read_lines


RUN = ("precision=float32", "threads=1", "batch_size=16", "max_rows=120")


def test_the_final_model_is_the_moving_average_of_the_best_step(danlu, digits, tmp_path):
    said = danlu(
        "pretrain", "mlp", f"data={digits}", *RUN, "optimizer=muon", "learning_rate=0.02", "ema=0.9", "schedule=wsd",
        "final_rate=0.5", "steps=60", "validate_every=5", "patience=2", "out=m",
    )  # fmt: skip
    assert said.code == 0, said.err + said.out
    lines = read_lines(tmp_path / "m" / "metrics.jsonl")
    best = min((line for line in lines if "validation" in line), key=lambda line: line["validation"]["loss"])["step"]
    stopped = lines[-1]["step"]
    assert best < stopped < 60
    (final,) = (tmp_path / "m" / "model").glob("*.safetensors")
    final = load_file(final)
    place = tmp_path / "m" / "checkpoints" / f"step-{best:08d}"
    average, weights = (load_file(place / f"{name}.safetensors") for name in ("average", "weights"))
    assert all(torch.equal(average[f"model/{name}"], value) for name, value in final.items())
    assert not any(torch.equal(weights[f"model/{name}"], value) for name, value in final.items())
    assert all(line["gradient_norm"] > 0 for line in lines if "loss" in line)
    used = json.loads((tmp_path / "m" / "experiment.json").read_text())["used"]
    assert (used["ema"]["value"], used["final_rate"]["value"]) == (0.9, 0.5)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("optimizer=lion", "expected one of adamw, adam, muon, sgd"),
        ("schedule=cosin", "expected one of cosine, linear, constant, wsd"),
        ("initialise=he", "expected one of normal, xavier_uniform, kaiming_normal, orthogonal, gpt2, zero_residual"),
        ("nesterov=yes", "nesterov=true: optimizer=adamw"),
        ("ema=1", "expected a number at least 0 and below 1"),
    ],
)
def test_what_there_is_not_is_an_error_that_lists_what_there_is(danlu, digits, tmp_path, setting, said):
    found = danlu("pretrain", "mlp", f"data={digits}", *RUN, "steps=2", setting, "out=m")
    assert found.code == 2 and said in found.err, found.err
    assert not (tmp_path / "m").exists()
