"""Training that ends for want of memory goes on with smaller micro-batches; one that is expected to fit is begun with such."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from danlu.core import device
from danlu.core.track import read_lines
from danlu.experiment import ask
from danlu.recipes.catalogue import RECIPES
from danlu.stages import build as build_module
from danlu.stages.build import build, fitting, measured, trial
from danlu.stages.prepare import prepare


RUN = (
    "batch_size=8",
    "precision=float32",
    "threads=1",
    "validate_every=4",
    "patience=none",
    "baselines=no",
    "dropout=0",
    "steps=16",
)


def words(sorter, text_file, *more):
    return ["finetune", "text-classification", f"model={sorter}", f"data={text_file}", *RUN, *more]


def losses(run):
    return [line["loss"] for line in read_lines(run / "metrics.jsonl") if "loss" in line]


def micro_batch(run):
    used = json.loads((run / "experiment.json").read_text())["used"]["micro_batch_tokens"]
    return used["value"], used["origin"]


@pytest.fixture
def killed(sorter, text_file, spawn, tmp_path):
    """A run that was killed after its first checkpoint, with micro-batches of 256 tokens."""

    def make(name):
        process = spawn([*words(sorter, text_file, "micro_batch_tokens=256"), f"out={name}"], tmp_path)
        deadline = time.monotonic() + 120
        while not list((tmp_path / name / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.join()
        return tmp_path / name

    return make


@pytest.mark.skipif(not device.oom_kills(), reason="this kernel does not count what it kills for want of memory")
def test_what_the_kernel_killed_for_memory_goes_on_with_half(danlu, sorter, text_file, killed, tmp_path):
    again = words(sorter, text_file, "micro_batch_tokens=256")
    assert danlu(*again, "out=whole").code == 0
    run = killed("r")
    facts = json.loads((run / "run.json").read_text())
    assert facts["started"] == device.oom_kills()
    facts["started"]["oom_kills"] = str(int(facts["started"]["oom_kills"]) - 1)  # the kernel has killed one since
    (run / "run.json").write_text(json.dumps(facts))
    resumed = danlu("resume", "r")
    assert (
        resumed.code == 0 and "micro_batch_tokens=128 from now on (was 256); the gradient stays the same" in resumed.out
    )
    assert micro_batch(run) == (128, "halved: 256 took more memory than there was")
    np.testing.assert_allclose(losses(run), losses(tmp_path / "whole"), rtol=1e-4)
    longer = danlu(*[word for word in again if word != "steps=16"], "steps=20", "out=r")
    assert longer.code == 0 and micro_batch(run)[0] == 128, "remembered"


def test_another_kill_halves_nothing(danlu, sorter, text_file, killed, tmp_path):
    assert danlu(*words(sorter, text_file, "micro_batch_tokens=256"), "out=whole").code == 0
    run = killed("r")
    assert danlu("resume", "r").code == 0
    assert losses(run) == losses(tmp_path / "whole")
    assert micro_batch(run)[0] == 256


def test_a_row_that_is_too_long_for_half_says_so(danlu, sorter, text_file, killed):
    run = killed("r")
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "out_of_memory": True}))
    experiment = json.loads((run / "experiment.json").read_text())
    experiment["used"]["micro_batch_tokens"]["value"] = 16
    (run / "experiment.json").write_text(json.dumps(experiment))
    resumed = danlu("resume", "r")
    assert resumed.code == 0 and "is never cut: free memory, or begin again with lower max_tokens" in resumed.out
    assert micro_batch(run)[0] == 16 and json.loads((run / "run.json").read_text())["out_of_memory"] is False


LIMITED = """
import resource, sys
from pathlib import Path
import torch, torch.utils.tensorboard
from danlu.training import fit
from danlu.cli import main
update = fit.update
def limited(*given):  # from the first update on: so much more address space than there is, and no more
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + 60_000_000,) * 2)
    return update(*given)
fit.update = limited
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere address space has no limit")
def test_an_allocation_that_fails_says_what_to_do(danlu, sorter, tmp_path, texts):
    """Under a limit of address space: one clear error, and the next start does with half, then half of that, until it fits."""
    rows = [{**row, "text": " ".join([row["text"]] * 4)} for row in texts * 8]
    file = tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps({**row, "text": f"{row['text']} {at}"}) + "\n" for at, row in enumerate(rows)))
    settings = ["finetune", "text-classification", f"model={sorter}", f"data={file}", *RUN[1:], "batch_size=256", "micro_batch_tokens=1000000", "near=none", "out=r"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *settings], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "not enough memory for a step" in done.stderr and "danlu resume r goes on, with half" in done.stderr
    assert "Traceback" not in done.stderr
    facts = json.loads((tmp_path / "r" / "run.json").read_text())
    assert facts["status"] == "failed" and facts["out_of_memory"] is True
    resumed = danlu("resume", "r")
    assert resumed.code == 0, resumed.err
    assert micro_batch(tmp_path / "r")[0] == 500_000
    assert json.loads((tmp_path / "r" / "run.json").read_text())["out_of_memory"] is False


def test_a_micro_batch_is_begun_with_that_fits(sorter, text_file):
    def expected(room, *, micro=None):
        settings = {"model": str(sorter), "data": str(text_file), "batch_size": 64} | (
            {"micro_batch_tokens": micro} if micro else {}
        )
        asked = ask(RECIPES.get, ["text-classification"], settings)
        prepared = prepare(asked, say=lambda _: None)
        built = build(prepared, lambda _: None)
        found = trial(built, prepared)
        smaller, told = fitting(built, prepared, found, room(found))
        return smaller.settings["micro_batch_tokens"], built.state.data.most, found, told

    setting, most, _, _ = expected(lambda found: int(found["memory_bytes"] * 2))
    assert (setting.value, setting.origin, most) == (2048, "default", 2048)
    setting, most, found, told = expected(lambda found: int((found["fixed_bytes"] + 600 * found["bytes_each"]) / 0.9))
    assert most == setting.value == 512 and setting.origin.startswith("derived: ")
    assert told["memory_bytes"] == pytest.approx(found["fixed_bytes"] + 512 * found["bytes_each"])
    setting, most, _, _ = expected(lambda found: 1)
    assert most == 128, "a row is never cut"
    assert expected(lambda found: 1, micro=1024)[0].value == 1024, "what was asked for stays"


def test_a_trial_on_a_machine_at_rest_is_remembered(sorter, text_file, tmp_path, monkeypatch):
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    times = []
    monkeypatch.setattr(build_module, "measured", lambda *given: times.append(given[-1]) or measured(*given))

    def tried(rest, **more):
        monkeypatch.setattr(build_module, "at_rest", lambda: rest)
        settings = {"model": str(sorter), "data": str(text_file), "batch_size": 64, "steps": 3} | more
        prepared = prepare(ask(RECIPES.get, ["text-classification"], settings), say=lambda _: None)
        return trial(build(prepared, lambda _: None), prepared)

    tried(rest=False)
    tried(rest=False)
    assert times == [1, 1], "beside other work every start measures"
    kept = tried(rest=True)
    for again in (tried(rest=False, learning_rate=0.1), tried(rest=True)):
        assert again["tokens_per_second"] == kept["tokens_per_second"] and again["bytes_each"] == kept["bytes_each"]
    assert times == [1, 1, 2]
    held = np.ones(200_000_000, np.uint8)
    more = tried(rest=True)["fixed_bytes"]
    assert more > 0.9 * held.nbytes, "what the process has now is not remembered"
    del held
    for other in ({"method": "lora"}, {"max_tokens": 8}, {"dropout": 0.3}, {"freeze": "embeddings"}):
        tried(rest=False, **other)
    assert times == [1, 1, 2, 1, 1, 1, 1], "another network, number of trained weights or shape is another trial"
    tried(rest=True, steps=None, hours=1)
    assert len(times) == 8, "what fills hours is measured now"
    (place,) = (tmp_path / "cache" / "speed").glob("trial-*")
    for broken in ("", "[]", '{"seconds": 0, "held": 1}', '{"seconds": "1"}'):
        place.write_text(broken)
        tried(rest=True)
    assert len(times) == 12
