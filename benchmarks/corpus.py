"""`danlu prepare corpus` against the tokenizer alone, against datasets.map and against datatrove; its memory; kills; a gigabyte.

    python benchmarks/corpus.py make OUT TEXT.jsonl[.gz]… megabytes=50     sources of that size in real formats, from sentences of these texts
    python benchmarks/corpus.py tokenize SOURCES tokenizer=DIR pairs=5     tokenize and pack, in alternation with the tokenizer and datasets.map
    python benchmarks/corpus.py memory TEXT.jsonl[.gz]… tokenizer=DIR      peak memory from 10 MB to 2 GB
    python benchmarks/corpus.py whole SOURCES                              everything, with a report of each pass
    python benchmarks/corpus.py kills SOURCES times=10                     killed at random moments and started again: the same bytes?
    python benchmarks/corpus.py datatrove TEXT.jsonl[.gz]… megabytes=5     Gopher's rules and near duplicates in datatrove
    python benchmarks/corpus.py all                                        everything above, from the sample in examples/data

Peers live in an environment of their own, .venv-peers, which is made when it is first needed. Run nothing else meanwhile.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import ROOT, interpreter, run


HERE = Path(__file__).parent
PEERS = ["datasets==4.4.1", "tokenizers==0.22.1", "datatrove[io,processing]==0.10.1", "spacy==3.8.7"]
DANLU = [str(Path(sys.executable).with_name("danlu")), "prepare", "corpus"]
PLAIN = ("cleaning=", "duplicates=keep", "validation_share=0.0001", "test_share=0.0001")


# ----------------------------------------------------------------------------------------------------------- sources


def texts(paths):
    """Every text of JSONL files with a column text, document or review."""
    for path in paths:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.endswith(".gz")
            else Path(path).open(encoding="utf-8") as file
        ):
            for line in file:
                row = json.loads(line)
                yield next(row[name] for name in ("text", "document", "review") if name in row)


def mixed(paths, megabytes, seed=0):
    """Documents of 3 to 30 real sentences, drawn anew for each, until there are so many megabytes."""
    pool = [
        part.strip()
        for text in texts(paths)
        for part in re.split(r"(?<=[.!?。！？])\s*", text)
        if len(part.strip()) > 12
    ]
    dice, size = random.Random(seed), 0
    while size < megabytes * 1e6:
        count = dice.randint(3, 30)
        at = dice.randrange(len(pool))  # neighbours belong to one text and one language
        chosen = [pool[(at + dice.randrange(200)) % len(pool)] for _ in range(count)]
        text = ("" if chosen[0][0] > "\u2e00" else " ").join(chosen)
        size += len(text.encode())
        yield text


def make(out, paths, megabytes):
    """A third JSONL (one file packed), a third WARC and WET, a third a dump of Wikipedia; a tenth of the documents stand there twice."""
    from xml.sax.saxutils import escape

    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    out = Path(out)
    out.mkdir(parents=True)
    dice, before = random.Random(1), []
    with (
        (out / "a.jsonl").open("w", encoding="utf-8") as one,
        gzip.open(out / "b.jsonl.gz", "wt", encoding="utf-8", compresslevel=3) as two,
        (out / "c.warc.gz").open("wb") as three,
        (out / "d.wet.gz").open("wb") as four,
        bz2.open(out / "e.xml.bz2", "wt", encoding="utf-8", compresslevel=1) as five,
    ):
        warc, wet = WARCWriter(three, gzip=True), WARCWriter(four, gzip=True)
        five.write("<mediawiki>\n")
        for number, text in enumerate(mixed(paths, megabytes)):
            if before and dice.random() < 0.1:
                text = dice.choice(before)
            elif len(before) < 10_000:
                before.append(text)
            kind = number % 6
            if kind < 2:
                (one if kind else two).write(json.dumps({"text": text, "id": number}, ensure_ascii=False) + "\n")
            elif kind == 2:
                page = f"<html><head><title>{number}</title></head><body><nav>Home</nav><main><p>{escape(text)}</p></main></body></html>"
                headers = StatusAndHeaders(
                    "200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1"
                )
                warc.write_record(
                    warc.create_warc_record(
                        f"http://a.org/{number}", "response", io.BytesIO(page.encode()), http_headers=headers
                    )
                )
            elif kind == 3:
                wet.write_record(
                    wet.create_warc_record(
                        f"http://a.org/{number}",
                        "conversion",
                        io.BytesIO(text.encode()),
                        warc_content_type="text/plain",
                    )
                )
            else:
                five.write(
                    f"<page><title>{number}</title><ns>0</ns><revision><text>{escape(text)}</text></revision></page>\n"
                )
        five.write("</mediawiki>\n")


# ---------------------------------------------------------------------------------------------------------- measured


def digest(folder):
    """One SHA-256 of all files and their names."""
    whole = hashlib.sha256()
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        whole.update(f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


RAW = """
import json, sys, time
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[2] + "/tokenizer.json")
texts = [json.loads(line)["text"] for line in open(sys.argv[1], encoding="utf-8")]
tokenizer.encode_batch_fast(texts[:1000])
began = time.monotonic()
tokens = 0
for at in range(0, len(texts), 1000):
    tokens += sum(len(each) for each in tokenizer.encode_batch_fast(texts[at : at + 1000], add_special_tokens=False))
print(time.monotonic() - began, tokens)
"""
MAP = """
import time
started = time.monotonic()
import sys
from datasets import Dataset, load_dataset
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[2] + "/tokenizer.json")
def encode(rows):
    return {"ids": [each.ids for each in tokenizer.encode_batch_fast(rows["text"], add_special_tokens=False)]}
data = load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[4])
began = time.monotonic()
made = data.map(encode, batched=True, batch_size=int(sys.argv[5]), num_proc=int(sys.argv[3]) or None, remove_columns=data.column_names, load_from_cache_file=False)
took = time.monotonic() - began
print(took, time.monotonic() - started, len(made))
"""


def tokenize(source, tokenizer, pairs=5):
    """Medians of so many rounds of: the tokenizer alone, danlu from the command to the packed corpus, datasets.map at its best setting."""
    python, size = interpreter(".venv-peers", PEERS), sum(len(text.encode()) for text in texts([source]))
    with tempfile.TemporaryDirectory() as scratch:

        def mapped(processes, batch):
            found = subprocess.run(
                [python, "-c", MAP, source, tokenizer, str(processes), f"{scratch}/hf", str(batch)],
                capture_output=True,
                text=True,
                check=True,
            )
            return tuple(map(float, found.stdout.split()[-3:-1]))  # of map alone, and with imports and load_dataset

        trials = {(processes, batch): mapped(processes, batch) for processes in (0, 1, 2) for batch in (1000, 10_000)}
        best = min(trials, key=trials.get)
        print(
            "datasets.map, num_proc and batch_size: seconds",
            {key: round(value[0], 1) for key, value in trials.items()},
            "best",
            best,
        )
        rows = {"tokenizer alone": [], "danlu": [], "datasets.map": [], "… and loading": []}
        for _ in range(pairs):
            raw = subprocess.run(
                [sys.executable, "-c", RAW, source, tokenizer], capture_output=True, text=True, check=True
            ).stdout.split()
            rows["tokenizer alone"].append(float(raw[0]))
            shutil.rmtree(f"{scratch}/c", ignore_errors=True)
            seconds, peak = run([*DANLU, f"data={source}", f"out={scratch}/c", f"tokenizer={tokenizer}", *PLAIN])
            rows["danlu"].append(seconds)
            for name, taken in zip(("datasets.map", "… and loading"), mapped(*best), strict=True):
                rows[name].append(taken)
        card = json.loads(Path(scratch, "c", "corpus.json").read_text())
        documents = sum(card["documents"].values())
        print(
            f"{size / 1e6:.1f} MB, {documents:,} documents; tokens of the tokenizer alone {int(raw[1]):,}, danlu's training part {card['tokens']:,} with two marks a document"
        )
        for name, seconds in rows.items():
            print(
                f"{name:16} {statistics.median(seconds):8.1f} s {size / statistics.median(seconds) / 1e6:7.2f} MB/s",
                [round(each, 1) for each in seconds],
            )
        of_raw = statistics.median(a / b for a, b in zip(rows["tokenizer alone"], rows["danlu"], strict=True))
        of_map = [
            statistics.median(a / b for a, b in zip(rows[name], rows["danlu"], strict=True))
            for name in ("datasets.map", "… and loading")
        ]
        print(
            f"danlu, from the command to the corpus: {of_raw:.0%} of the tokenizer's own rate, {of_map[0]:.2f} times datasets.map, {of_map[1]:.2f} times with its loading; peak memory {peak / 1e6:,.0f} MB"
        )


def memory(paths, tokenizer):
    """Peak memory of everything, cleaning and duplicates included."""
    with tempfile.TemporaryDirectory() as scratch:
        for megabytes in (10, 100, 2000):
            source = Path(scratch, "a.jsonl")
            with source.open("w", encoding="utf-8") as file:
                for text in mixed(paths, megabytes):
                    file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            seconds, peak = run([*DANLU, f"data={source}", f"out={scratch}/c", f"tokenizer={tokenizer}"])
            print(f"{megabytes:5} MB {peak / 1e6:8,.0f} MB peak {seconds:8.0f} s", flush=True)
            shutil.rmtree(f"{scratch}/c")


def datatrove(paths, megabytes, pairs=3):
    """Gopher's rules and near duplicates, in alternation with datatrove: two files, two processes on either side."""
    python = interpreter(".venv-peers", PEERS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "in")
        folder.mkdir()
        for half in range(2):
            with (folder / f"{half}.jsonl").open("w", encoding="utf-8") as file:
                for text in mixed(paths, megabytes / 2, seed=half):
                    file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        theirs, ours = [], []
        for _ in range(pairs):
            found = subprocess.run(
                [python, HERE / "corpus_datatrove.py", folder], capture_output=True, text=True, check=True
            )
            stages = dict(line.split() for line in found.stdout.splitlines() if len(line.split()) == 2)
            print(f"datatrove: {stages}", flush=True)
            theirs.append(sum(map(float, stages.values())))
            shutil.rmtree(f"{scratch}/c", ignore_errors=True)
            seconds, _ = run(
                [
                    *DANLU,
                    f"data={folder}",
                    f"out={scratch}/c",
                    "cleaning=quality",
                    "quality=gopher,repetition",
                    "tokenize=false",
                    "validation_share=0",
                    "test_share=0",
                ]
            )
            ours.append(seconds)
            print(f"danlu: {seconds:.1f} s", flush=True)
        print(
            f"{megabytes:g} MB: datatrove {statistics.median(theirs):.1f} s, danlu {statistics.median(ours):.1f} s from the command to the card"
        )


def kills(source, times=10, seed=0):
    """SIGKILL to the process alone at random moments of the time it takes; then once to its end."""
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole, killed = f"{scratch}/one/c", f"{scratch}/two/c"
        began = time.monotonic()
        run([*DANLU, f"data={source}", f"out={whole}"])
        took, done, early = time.monotonic() - began, 0, 0
        while done < times:
            process = subprocess.Popen(
                [*DANLU, f"data={source}", f"out={killed}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                process.wait(dice.uniform(0.02, 0.3) * took)
                early += 1
                shutil.rmtree(killed)  # it came to its end: begun anew, so that every kill is one in the middle
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
        run([*DANLU, f"data={source}", f"out={killed}"])
        card = json.loads(Path(killed, "corpus.json").read_text())
        print(
            f"{times} kills of a command that takes {took:.0f} s ({early} times it ended first and was begun anew): {'the same bytes' if digest(whole) == digest(killed) else 'DIFFERENT'}; {card['records']:,} records, all accounted for"
        )


def everything():
    """All of it, as `make bench` does, on what comes with the repository."""
    from danlu.models.base import resolve

    tokenizer = str(resolve("smollm2-135m", print).folder)
    sample = [str(ROOT / "examples" / "data" / "sections.jsonl")]
    with tempfile.TemporaryDirectory() as scratch:
        sources, plain = Path(scratch, "sources"), Path(scratch, "plain.jsonl")
        make(sources, sample, 50)
        with plain.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in mixed(sample, 100))
        tokenize(str(plain), tokenizer)
        memory(sample, tokenizer)
        whole(str(sources))
        kills(str(sources))
        datatrove(sample, 2)


def whole(sources):
    """Everything on these sources, with a report of each pass."""
    with tempfile.TemporaryDirectory() as scratch:
        seconds, peak = run([*DANLU, f"data={sources}", f"out={scratch}/c"], quiet=False)
        print(f"{seconds:.0f} s, peak memory {peak / 1e6:,.0f} MB")


def main(arguments):
    name, *words = arguments or ["help"]
    keys = dict(word.split("=", 1) for word in words if "=" in word)
    places = [word for word in words if "=" not in word]
    if name == "make":
        make(places[0], places[1:], float(keys.get("megabytes", 50)))
    elif name == "tokenize":
        tokenize(places[0], keys["tokenizer"], int(keys.get("pairs", 5)))
    elif name == "memory":
        memory(places, keys["tokenizer"])
    elif name == "kills":
        kills(places[0], int(keys.get("times", 10)))
    elif name == "whole":
        whole(places[0])
    elif name == "all":
        everything()
    elif name == "datatrove":
        datatrove(places, float(keys.get("megabytes", 5)), int(keys.get("pairs", 3)))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
