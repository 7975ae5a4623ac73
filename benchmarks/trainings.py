"""What ablations.py and race.py share: one text, cut once for everybody, and trainings that are kept, so that a command given again goes on."""

from __future__ import annotations

import ctypes
import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

from peers import OUTSIDE


VALIDATION, TEST = 400, 1000
"""Documents held out; of a short text at most a twentieth and a tenth."""


class FailedError(SystemExit):
    """A command ended with an error; the text is the end of what it said, and all that a person is shown."""


def keys_of(arguments, about, required=("data", "out"), **defaults):
    """The settings of a command line: key=value, each of the kind its default has."""
    given = dict(word.split("=", 1) for word in arguments if "=" in word)
    wrong = [word for word in arguments if word.split("=", 1)[0] not in {*required, *defaults} or "=" not in word]
    if wrong or not all(key in given for key in required):
        raise SystemExit(f"found {', '.join(wrong)}\n\n{about}" if wrong else about)
    kinds = {key: type(value) for key, value in defaults.items()}
    return defaults | {key: kinds.get(key, str)(value) for key, value in given.items()}


def command(words, **environment):
    """What a command said. It is asked to end (TERM) when this process ends, so that none goes on behind it."""
    ended = subprocess.run(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**OUTSIDE, **environment},
        preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGTERM),  # PR_SET_PDEATHSIG
    )
    if ended.returncode:
        raise FailedError(f"{ended.stdout[-3000:]}\n{' '.join(map(str, words))} ended with {ended.returncode}")
    return ended.stdout


def danlu(*words, **settings):
    """What a command of danlu's said."""
    program = Path(sys.executable).with_name("danlu")
    return command([program, *words, *(f"{key}={value}" for key, value in settings.items())])


def texts(data, out):
    """{part: JSONL file} of train, validation and test: near duplicates dropped by `danlu prepare corpus`, the rest cut by document."""
    import pyarrow.parquet

    with Path(data).open("rb") as lines:
        rows = sum(1 for _ in lines)
    shares = {"validation_share": min(0.05, VALIDATION / rows), "test_share": min(0.1, TEST / rows)}
    corpus, files = out / "corpus", {part: out / f"{part}.jsonl" for part in ("train", "validation", "test")}
    danlu("prepare", "corpus", data=data, out=corpus, tokenize="false", cleaning="", **shares)
    for part, file in files.items():
        if file.is_file():
            continue
        tables = sorted((corpus / "texts").glob("*.parquet")) if part == "train" else [corpus / f"{part}.parquet"]
        found = [text for table in tables for text in pyarrow.parquet.read_table(table)["text"].to_pylist()]
        write(file, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in found))
    return files


def tokenizer(files, vocabulary, out):
    """Folder of a byte-level BPE of so many tokens, learned once from the training documents and the same for every side."""
    folder = out / f"tokenizer-{vocabulary}"
    if not (folder / "tokenizer.json").is_file():
        danlu("prepare", "tokenizer", data=files["train"], size=vocabulary, out=folder)
    return folder


def write(path, text):
    """All of a file or nothing of it."""
    building = path.with_name(path.name + ".building")
    building.write_text(text, encoding="utf-8")
    building.replace(path)


class Kept:
    """Results of trainings, a JSON line each. A training whose settings are there already is not made again."""

    def __init__(self, path):
        self.path = path
        self.lines = list(map(json.loads, path.read_text("utf-8").splitlines())) if path.is_file() else []

    def __call__(self, job, train):
        """The result of job, a JSON object of settings: remembered, or what train(name) gives, where name is as unique as the job."""
        found = next((line["result"] for line in self.lines if line["job"] == job), None)
        if found is None:
            found = train(hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:12])
            self.lines.append({"job": job, "result": found})
            write(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines))
        return found
