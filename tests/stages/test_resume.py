"""A run that is killed, stopped or started twice ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal

import pytest
from tests.stages.killing import chat, corpus, images, kill, killed_often, outcome, steps, texts, wait_for


@pytest.mark.parametrize("kind", ["chat", "texts", "gpt", "bert", "mlp", "gan"])
def test_ten_kills_change_nothing(kind, chatter, sorter, chat_file, text_file, digits, danlu, spawn, tmp_path):
    """Ten for each kind, five inside a save; `make test-faults` does it twenty times as often. A GAN has two learners and remembers running
    statistics."""
    words = {
        "chat": lambda: chat(chatter, chat_file),
        "texts": lambda: texts(sorter, text_file, steps=80),
        "gpt": lambda: corpus(text_file, "gpt", "ema=0.9", steps=130),
        "bert": lambda: corpus(text_file, "bert", "dropout=0.1", steps=130),
        "mlp": lambda: images(digits, "mlp", "dropout=0.5", "augment=crop,rotate"),
        "gan": lambda: images(digits, "gan", steps=40),
    }[kind]()
    assert danlu(*words, "out=whole").code == 0
    run = tmp_path / "killed"
    killed_often([*words, "out=killed"], run, spawn, 10, random.Random(kind))
    assert json.loads(danlu("show", "killed", "--json").out)["seed"]["value"] == 0
    assert danlu(*words, "out=killed").code == 0
    assert outcome(run) == outcome(tmp_path / "whole")
    assert not list((run / "checkpoints").glob(".building-*"))
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
