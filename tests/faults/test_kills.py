"""More than two hundred kills, half of them inside a save: eleven kinds of runs on tiny models, and two on real ones."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.stages.killing import RUN, chat, corpus, held_in_a_save, images, in_a_save, killed_often, outcome, texts
from tests.stages.test_own import TORCH

from danlu.core.checkpoint import verify
from danlu.core.track import read_lines


pytestmark = pytest.mark.faults
EXAMPLES = Path(__file__).parents[2] / "examples" / "data"


def finished(words, spawn, folder):
    process = spawn(words, folder)
    process.join()
    assert process.exitcode == 0, (folder / "said.txt").read_text()[-3000:]


def killed_and_whole(words, times, spawn, folder, seed):
    """The run that was killed so many times is the one that was not."""
    finished([*words, "out=whole"], spawn, folder)
    inside, epochs = killed_often([*words, "out=killed"], folder / "killed", spawn, times, random.Random(seed))
    finished([*words, "out=killed"], spawn, folder)
    assert outcome(folder / "killed") == outcome(folder / "whole")
    left = sorted((folder / "killed" / "checkpoints").iterdir())
    assert len(left) >= 2 and all(verify(path) is None for path in left)
    print("\n" + json.dumps({"kind": seed, "kills": times, "inside a save": inside, "by epoch": Counter(epochs)}))
    return epochs


@pytest.mark.parametrize(
    "kind", ["chat", "chat-full", "texts", "gpt", "prepared", "bert", "mlp", "vit", "autoencoder", "gan", "own"]
)
def test_eighteen_kills_change_nothing(kind, chatter, sorter, chat_file, text_file, digits, spawn, tmp_path):
    words = {
        "chat": lambda: chat(chatter, chat_file, steps=90),
        "chat-full": lambda: chat(chatter, chat_file, method="full", steps=90),
        "texts": lambda: texts(sorter, text_file, steps=120),
        "gpt": lambda: corpus(text_file, "gpt", "ema=0.9", steps=330),
        "prepared": lambda: ["pretrain", "gpt", "data=corpus", *RUN, "depth=1", "max_tokens=32", "steps=330"],
        "bert": lambda: corpus(text_file, "bert", "dropout=0.1", steps=330),
        "mlp": lambda: images(digits, "mlp", "dropout=0.5", "augment=crop,rotate", steps=90),
        "vit": lambda: images(digits, "vit", "depth=2", steps=90),
        "autoencoder": lambda: images(digits, "autoencoder", "hidden=32,8", "convolutional=no", "noise=0.3", steps=90),
        "gan": lambda: images(digits, "gan", steps=90),
        "own": lambda: images(digits, "image-classification", "model=theirs_killed:Net", "baselines=no", steps=90),
    }[kind]()
    (tmp_path / "theirs_killed.py").write_text(TORCH)
    if kind == "prepared":
        finished(
            ["prepare", "corpus", f"data={text_file}", "out=corpus", "vocabulary=500", "cleaning="], spawn, tmp_path
        )
    epochs = killed_and_whole(words, 18, spawn, tmp_path, kind)
    assert max(Counter(epochs).values()) >= 3, "no epoch with three kills"


@pytest.mark.parametrize("kind", ["smollm2", "minilm"])
def test_ten_kills_of_a_real_model_change_nothing(kind, smollm2, minilm, spawn, tmp_path):
    words = {
        "smollm2": lambda: ["finetune", "chat", f"model={smollm2}", f"data={EXAMPLES / 'descriptions_chat.jsonl'}", *RUN, "method=lora", "max_rows=30", "max_tokens=96", "steps=30", "answers=2", "answer_tokens=8"],
        "minilm": lambda: ["finetune", "text-classification", f"model={minilm}", f"data={EXAMPLES / 'sections.jsonl'}", *RUN, "max_rows=60", "steps=40", "baselines=no"],
    }[kind]()  # fmt: skip
    killed_and_whole(words, 10, spawn, tmp_path, kind)


def test_two_processes_killed_together_change_nothing(tmp_path):
    """Eight kills of both, a moment apart, half inside a save."""
    script = Path(__file__).parents[1] / "training" / "two_processes.py"
    dice, inside, killed = random.Random(2), 0, []

    def started(folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        return [
            subprocess.Popen(
                [sys.executable, script, folder, "120"], env={**shared, "RANK": rank}, stderr=subprocess.PIPE
            )
            for rank in "01"
        ]

    def finish(folder):
        for process in started(folder):
            said = process.communicate()[1]
            assert process.returncode == 0, said.decode()

    def lines():
        return len(read_lines(run / "numbers-0" / "metrics.jsonl"))

    run = tmp_path / "killed"
    finish(tmp_path / "whole")
    for number in range(8):
        since, before = time.time_ns(), lines()
        pair = started(run)
        further = before + dice.randint(1, 9)
        while lines() < further or (
            number % 2 == 0 and not (in_a_save(run, since) and held_in_a_save(pair[0], run, since))
        ):
            assert all(process.poll() is None for process in pair), pair[0].stderr.read().decode()
        first = dice.randrange(2)
        pair[first].kill()
        time.sleep(dice.choice([0, 0.02]))
        pair[1 - first].kill()
        for process in pair:
            process.communicate()
        assert pair[first].returncode == -signal.SIGKILL
        inside += number % 2 == 0 and in_a_save(run, since)
        killed.append(lines())
    finish(run)
    print("\n" + json.dumps({"kind": "two processes", "kills": 8, "inside a save": inside, "at steps": killed}))
    for rank in (0, 1):
        for name in (f"end-{rank}.safetensors", f"numbers-{rank}/metrics.jsonl"):
            assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert inside == 4
