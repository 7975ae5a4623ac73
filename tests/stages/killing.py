"""Runs that are killed: what is started, when it is killed, and what must be equal afterwards."""

from __future__ import annotations

import json
import os
import signal
import time

from danlu.core.track import read_lines


RUN = ("batch_size=2", "precision=float32", "threads=1", "validate_every=1", "patience=none")


def chat(chatter, chat_file, *more, steps=30, method="lora"):
    return ["finetune", "chat", f"model={chatter}", f"data={chat_file}", *RUN, f"method={method}", f"steps={steps}", "answers=2", "answer_tokens=8", *more]  # fmt: skip


def texts(sorter, text_file, *more, steps=20):
    return ["finetune", "text-classification", f"model={sorter}", f"data={text_file}", *RUN, f"steps={steps}", "baselines=no", *more]  # fmt: skip


def images(digits, recipe, *more, steps=30):
    return ["pretrain", recipe, f"data={digits}", *RUN[1:], "batch_size=16", f"steps={steps}", *more]


def corpus(text_file, recipe, *more, steps=40):
    small = ("depth=2", "vocabulary=500", "max_tokens=32", "batch_size=2")
    return ["pretrain", recipe, f"data={text_file}", *RUN[1:], *small, f"steps={steps}", *more]


def outcome(run):
    """What must be equal, bit for bit: weights, optimizer, random states and place in the data at the end, every number on the way, the figures
    of the test, the images shown."""
    names = [
        "metrics.jsonl",
        "evaluation.json",
        *(str(path.relative_to(run)) for path in (run / "samples").glob("*")),
    ]
    names += [f"data/{path.name}" for path in (run / "data").glob("[tv]*.*")]
    last = max((run / "checkpoints").glob("step-*"))
    names += [str(path.relative_to(run)) for path in last.glob("*.safetensors")]
    found = {name: (run / name).read_bytes() for name in names}
    state = json.loads((last / "state.json").read_text())
    found["state"] = {key: value for key, value in state.items() if key not in ("seconds", "offsets")}  # of the clock
    return found | {path.name: path.read_bytes() for path in (run / "model").iterdir() if path.name != "README.md"}


def wait_for(condition, process, seconds=120):
    """Until something is so, or the process has ended."""
    deadline = time.monotonic() + seconds
    while process.is_alive() and time.monotonic() < deadline:
        if condition():
            return True
    return False


def in_a_save(run, since):
    """Whether a checkpoint is being written this moment: not what a process killed before `since` (nanoseconds) has left."""
    try:
        with os.scandir(run / "checkpoints") as entries:
            return any(entry.name.startswith(".building-") and entry.stat().st_ctime_ns > since for entry in entries)
    except FileNotFoundError:
        return False


def held_in_a_save(process, run, since):
    """Stop a process where it is; go on with it unless that is inside a save."""
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.01)  # all its threads
    if in_a_save(run, since):
        return True
    os.kill(process.pid, signal.SIGCONT)
    return False


def kill(process):
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it had ended before it was killed"


def epoch(run):
    return max((line.get("epoch", 0) for line in read_lines(run / "metrics.jsonl")), default=0)


def steps(run):
    return max((line["step"] for line in read_lines(run / "metrics.jsonl")), default=0)


def killed_often(words, run, spawn, times, dice):
    """Kill a run so many times, every second time inside a save; the others while it starts, in its middle, and at the border of an epoch.

    Returns how many were inside a save, and the epoch each was killed in.
    """
    inside, epochs = 0, []
    for number in range(times):
        since, before, ended = time.time_ns(), steps(run), epoch(run)
        process = spawn(words, run.parent)
        if number % 2 == 0:
            further = before + dice.randint(0, 2)
            found = wait_for(
                lambda n=further, t=since, p=process: (
                    steps(run) > n and in_a_save(run, t) and held_in_a_save(p, run, t)
                ),
                process,
            )
            assert found, f"no save was seen: {(run.parent / 'said.txt').read_text()[-2000:]}"
        elif number % 6 == 1:
            wait_for(lambda: run.exists(), process)
            time.sleep(dice.uniform(0, 0.4))
        elif number % 6 == 3:
            wait_for(lambda n=before: steps(run) > n, process)
            time.sleep(dice.uniform(0, 0.1))
        else:
            wait_for(lambda border=int(ended) + 1: epoch(run) >= border, process)
        kill(process)
        inside += number % 2 == 0 and in_a_save(run, since)
        epochs.append(int(epoch(run)))
    assert inside == times // 2
    return inside, epochs
