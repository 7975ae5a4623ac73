"""A run that is killed, stopped or started twice ends as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from tests.stages.killing import RUN, chat, corpus, images, kill, killed_often, outcome, steps, texts, wait_for

from danlu.core import checkpoint
from danlu.core.checkpoint import Checkpoint
from danlu.core.errors import Interrupted
from danlu.core.run import Run, create
from danlu.stages.train import stoppable


@pytest.mark.parametrize("kind", ["chat", "texts", "gpt", "prepared", "bert", "mlp", "gan"])
def test_ten_kills_change_nothing(kind, chatter, sorter, chat_file, text_file, digits, danlu, spawn, tmp_path):
    """Ten for each kind (prepared: gpt on a corpus), five inside a save; `make test-faults` does it twenty times as often. A GAN has two learners and remembers running
    statistics."""
    words = {
        "chat": lambda: chat(chatter, chat_file),
        "texts": lambda: texts(sorter, text_file, steps=80),
        "gpt": lambda: corpus(text_file, "gpt", "ema=0.9", steps=130),
        "prepared": lambda: ["pretrain", "gpt", "data=corpus", *RUN, "depth=1", "max_tokens=32", "steps=130"],
        "bert": lambda: corpus(text_file, "bert", "dropout=0.1", steps=130),
        "mlp": lambda: images(digits, "mlp", "dropout=0.5", "augment=crop,rotate"),
        "gan": lambda: images(digits, "gan", steps=40),
    }[kind]()
    if kind == "prepared":
        assert danlu("prepare", "corpus", f"data={text_file}", "out=corpus", "vocabulary=500", "cleaning=").code == 0
    assert danlu(*words, "out=whole").code == 0
    run = tmp_path / "killed"
    killed_often([*words, "out=killed"], run, spawn, 10, random.Random(kind))
    assert json.loads(danlu("show", "killed", "--json").out)["seed"]["value"] == 0
    resumed = danlu("resume", "killed")  # after each kill it was the same command again
    assert resumed.code == 0, resumed.err
    assert outcome(run) == outcome(tmp_path / "whole")
    assert not list(run.rglob(".building-*"))
    if kind in ("chat", "texts"):
        assert danlu("predict", "killed", "Hello").out == danlu("predict", "whole", "Hello").out


def test_ctrl_c_saves_and_resume_is_bitwise(chatter, chat_file, danlu, spawn, tmp_path):
    words = chat(chatter, chat_file)
    assert danlu(*words, "out=whole").code == 0
    run = tmp_path / "stopped"
    process = spawn([*words, "out=stopped"], tmp_path)
    assert wait_for(lambda: steps(run) >= 4, process), (tmp_path / "said.txt").read_text()
    other = danlu(*words, "out=stopped")
    os.kill(process.pid, signal.SIGINT)
    process.join()
    said = (tmp_path / "said.txt").read_text()
    assert process.exitcode == 130, said
    assert "go on with: danlu resume stopped" in said and "Traceback" not in said
    assert other.code == 2 and f"is being written by process {process.pid}" in other.err
    assert danlu("runs", "compare", "stopped", "whole").code == 0
    found = json.loads((run / "run.json").read_text())
    assert found["status"] == "interrupted"
    wrong = danlu("predict", "stopped", "Hello")
    assert wrong.code == 2 and "danlu resume stopped" in wrong.err
    resumed = danlu("resume", "stopped")
    assert resumed.code == 0 and "going on from step" in resumed.out
    assert outcome(run) == outcome(tmp_path / "whole")
    again = danlu("resume", "stopped")
    assert again.code == 0 and "nothing to do" in again.out


def test_a_run_that_had_stopped_early_and_was_made_longer_survives_a_kill(sorter, text_file, danlu, tmp_path):
    """Killed before its next checkpoint: the newest one still says why the shorter run had ended."""

    def trained(steps):
        words = [*texts(sorter, text_file, steps=steps), "learning_rate=1e-30", "out=r"]
        words[words.index("patience=none")] = "patience=1"
        return danlu(*words)

    assert trained(20).code == 0
    assert "early stopping" in json.loads((tmp_path / "r" / "run.json").read_text())["stopped"]
    assert steps(tmp_path / "r") == 2
    shutil.copytree(tmp_path / "r", tmp_path / "killed")
    assert "going on from step 2 of 30" in trained(30).out
    assert steps(tmp_path / "r") == 3
    shutil.copy(tmp_path / "r" / "experiment.json", tmp_path / "killed")  # which is written before the first step
    facts = json.loads((tmp_path / "killed" / "run.json").read_text())
    (tmp_path / "killed" / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    assert danlu("resume", "killed").code == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "r")


def test_a_broken_checkpoint_is_passed_by(text_run, danlu, tmp_path, sorter, text_file):
    words = texts(sorter, text_file)
    assert danlu(*words, "out=whole").code == 0
    assert danlu(*words, "out=broken").code == 0
    run = tmp_path / "broken"
    newest = max((run / "checkpoints").glob("step-*"))
    for path in (newest / "weights.safetensors", run / "final.json"):
        path.write_bytes(path.read_bytes()[:-1])
    run_file = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**run_file, "status": "running"}))
    resumed = danlu("resume", "broken")
    assert resumed.code == 0, resumed.err
    assert "weights.safetensors has changed since it was written; passed by" in resumed.out
    assert "going on from step 19 of 20" in resumed.out
    assert outcome(run) == outcome(tmp_path / "whole")


def test_a_kill_before_the_first_step_leaves_nothing_in_the_way(danlu, sorter, text_file, tmp_path):
    """A run directory is written beside its place and renamed; what a killed process left there is nobody's run."""
    left = tmp_path / ".early.building-1"
    left.mkdir()
    (left / "run.json").write_text("{")
    assert danlu(*texts(sorter, text_file), "out=early").code == 0
    assert danlu("runs", "list").code == 0


def test_a_directory_of_someone_else_is_left_alone(danlu, sorter, text_file, tmp_path):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("precious")
    (thesis / "run.json").write_text("{}")
    refused = danlu(*texts(sorter, text_file), "out=thesis")
    assert refused.code == 2
    assert (thesis / "chapter.tex").read_text() == "precious"


def test_data_that_changed_is_refused(danlu, sorter, text_file, spawn, tmp_path):
    run, words = tmp_path / "r", texts(sorter, text_file, "out=r")
    process = spawn(words, tmp_path)
    assert wait_for(lambda: steps(run) >= 2, process), (tmp_path / "said.txt").read_text()
    kill(process)
    old = text_file.read_text("utf-8")
    text_file.write_text(old.replace("a ", "the "), "utf-8")
    for again in (["resume", "r"], words):
        result = danlu(*again)
        assert result.code == 2
        assert "texts.jsonl has changed since the run began" in result.err
    text_file.write_text(old, "utf-8")
    assert danlu("resume", "r").code == 0


@pytest.mark.parametrize("change", ["moved", "deleted", "cut", "metrics deleted"])
def test_a_run_that_another_program_changes_while_it_trains_is_one_error(
    change, danlu, sorter, text_file, spawn, tmp_path
):
    run, words = tmp_path / "r", texts(sorter, text_file, "out=r", steps=400)
    process = spawn(words, tmp_path)
    ready = wait_for(lambda: steps(run) >= 4 and any((run / "checkpoints").glob("step-*")), process)
    assert ready, (tmp_path / "said.txt").read_text()
    if change == "moved":
        run.rename(tmp_path / "there")
    elif change == "deleted":
        run.rename(tmp_path / "gone")
        shutil.rmtree(tmp_path / "gone")
    elif change == "cut":
        os.truncate(run / "metrics.jsonl", 10)
    else:
        (run / "metrics.jsonl").unlink()
    process.join(300)
    said = (tmp_path / "said.txt").read_text()
    assert process.exitcode == 2 and "Traceback" not in said and "fault" not in said, said
    if change in ("moved", "deleted"):
        assert "danlu: r is not there any more: it was moved or deleted" in said
        assert not run.exists()
    else:
        assert "r/metrics.jsonl" in said.split("danlu: ")[-1] and any((run / "checkpoints").glob("step-*"))
    if change != "deleted":
        place = tmp_path / ("there" if change == "moved" else "r")
        process = spawn(["resume", str(place)], tmp_path, "again.txt")
        (tmp_path / "again.txt").touch()
        found = wait_for(lambda: "going on from step" in (tmp_path / "again.txt").read_text(), process)
        kill(process)
        again = (tmp_path / "again.txt").read_text()
        assert found, again
        assert ("metrics.jsonl has" in again and "lines are missing" in again) == (change != "moved")


def test_numbers_deleted_before_the_first_checkpoint_cost_no_folder(danlu, sorter, text_file, spawn, tmp_path):
    words = [
        word.replace("validate_every=1", "validate_every=1000")
        for word in texts(sorter, text_file, "out=r", steps=1000)
    ]
    process = spawn(words, tmp_path)
    assert wait_for(lambda: steps(tmp_path / "r") >= 1, process), (tmp_path / "said.txt").read_text()
    (tmp_path / "r/metrics.jsonl").unlink()
    process.join(300)
    assert process.exitcode == 2 and "r/metrics.jsonl is not there any more" in (tmp_path / "said.txt").read_text()
    process = spawn(["resume", "r"], tmp_path, "again.txt")
    assert wait_for(lambda: steps(tmp_path / "r") >= 1, process), (tmp_path / "again.txt").read_text()
    kill(process)


def changed(path, **values):
    """state.json with other values, and the manifest that fits to it."""
    content = json.dumps({**json.loads((path / "state.json").read_text()), **values}).encode()
    (path / "state.json").write_bytes(content)
    told = json.loads((path / "manifest.json").read_text())
    told["files"]["state.json"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (path / "manifest.json").write_text(json.dumps(told))


EDITED = [
    ({"step": "4"}, 'state.json: step is "4", expected a whole number from 0'),
    ({"step": 3}, "state.json: step is 3, expected 4"),
    ({"position": 3}, "state.json: position is 3, expected"),
    ({"position": {"epoch": 1}}, "position in the data is {'epoch': 1}, expected an epoch from 0 and a row from 0 to "),
    ({"position": {"epoch": 0, "row": 10**6}}, "'row': 1000000}, expected an epoch"),
    ({"position": {"epoch": -1, "row": 0}}, "{'epoch': -1"),
    ({"recent": {"model": {"losses": ["x"], "norms": [], "skipped": 0, "returned": None}}}, 'recent.model.losses.0 is "x"'),
    ({"regular": 99}, "regular is 99, expected at most step 4"),
    ({"best": {"loss": 1.0, "worse": 0}}, "the key best.step is missing"),
    ({"offsets": {"metrics.jsonl": -5}}, "offsets.metrics.jsonl is -5"),
]  # fmt: skip


def test_a_checkpoint_that_was_edited_with_its_manifest_is_one_error(danlu, sorter, text_file, tmp_path):
    run = tmp_path / "r"
    assert danlu(*texts(sorter, text_file, "out=r", steps=5)).code == 0
    (run / "run.json").write_text((run / "run.json").read_text().replace('"finished"', '"running"'))
    shutil.rmtree(run / "checkpoints" / "step-00000005")
    whole = {path.name: path.read_bytes() for path in (run / "checkpoints" / "step-00000004").iterdir()}
    for values, said in EDITED:
        changed(run / "checkpoints" / "step-00000004", **values)
        found = danlu("resume", "r")
        assert found.code == 2 and said in found.err and "`danlu resume` the run" in found.err, found.err
        for name, content in whole.items():
            (run / "checkpoints" / "step-00000004" / name).write_bytes(content)
    assert danlu("resume", "r").code == 0


def test_a_checkpoint_of_another_network_is_one_error(danlu, sorter, text_file, tmp_path):
    run = tmp_path / "r"
    assert danlu(*texts(sorter, text_file, "out=r", steps=5)).code == 0
    (run / "run.json").write_text((run / "run.json").read_text().replace('"finished"', '"running"'))
    shutil.rmtree(run / "checkpoints" / "step-00000005")
    place = run / "checkpoints" / "step-00000004"
    names = ("weights", "optimizer", "average", "task", "random")
    whole, state = {name: Checkpoint(place, 4).tensors(name) for name in names}, Checkpoint(place, 4).state()
    first = min(whole["weights"])
    for value in (None, torch.zeros(3)):
        other = {key: each for key, each in whole["weights"].items() if key != first}
        checkpoint.save(place.parent, 4, whole | {"weights": other if value is None else other | {first: value}}, state)
        found = danlu("resume", "r")
        said = f"{first.removeprefix('model/')} has shape {'none' if value is None else '[3]'} there"
        assert found.code == 2 and said in found.err and "another out=" in found.err, found.err
    checkpoint.save(place.parent, 4, whole, state)
    assert danlu("resume", "r").code == 0


def test_ctrl_c_before_the_first_step_says_what_there_is(danlu, sorter, text_file, spawn, tmp_path):
    run, words = tmp_path / "r", texts(sorter, text_file, "out=r")
    process = spawn(words, tmp_path)
    assert wait_for(run.exists, process), (tmp_path / "said.txt").read_text()
    os.kill(process.pid, signal.SIGINT)
    process.join()
    said = (tmp_path / "said.txt").read_text()
    assert process.exitcode == 130 and "Traceback" not in said, said
    assert "danlu: stopped before the first step; begin with: danlu resume r" in said
    assert danlu("resume", "r").code == 0


def test_ctrl_c_names_the_run_from_the_moment_it_is_there(tmp_path):
    run = Run(tmp_path / "r")
    with pytest.raises(KeyboardInterrupt), stoppable(run):
        raise KeyboardInterrupt
    create(run.path)
    with pytest.raises(Interrupted, match="before the first step; begin with: danlu resume"), stoppable(run):
        raise KeyboardInterrupt


PRESSED = """
import time
from pathlib import Path
from danlu.core.run import Run
from danlu.stages.train import listening, stoppable
from danlu.training.hooks import Interrupt

with stoppable(Run(Path("r"))), listening(Interrupt()):
    try:
        print("a step", flush=True)
        time.sleep(60)
    finally:
        print("a save", flush=True)
        time.sleep(60)
"""


def test_the_third_ctrl_c_ends_at_once_without_a_traceback(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", PRESSED], stdout=-1, stderr=-1, text=True, cwd=tmp_path)
    assert process.stdout and process.stderr and process.stdout.readline() == "a step\n"
    process.send_signal(signal.SIGINT)
    told = [process.stderr.readline() for _ in range(2)]
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "a save\n"
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT and "once more: at once" in told[1] and not rest
