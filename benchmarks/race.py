"""`danlu pretrain gpt` against nanoGPT and litgpt: the same text, cores and minutes; and tokens a second of danlu and nanoGPT at one shape.

    python benchmarks/race.py run data=FILE.jsonl out=DIR      trials on each side, then the long training of each side's best
    python benchmarks/race.py speed data=FILE.jsonl out=DIR    tokens a second, alternated: equal shape, tokens and precision

    minutes=30 trials=8 trial_minutes=2 seed=0       run: seed= draws the candidates
    sides=danlu,nanogpt,litgpt                       run: who takes part
    context=256 micro=2048                           tokens in a row; the peers' tokens in a forward pass (speed tries several)
    depth=6 vocabulary=4096 batch=8192 steps=12 pairs=5      speed
    precision=                                       bfloat16 or float32; left out, what danlu takes on this machine, for all sides
    nanogpt=FOLDER                                   a clone of nanoGPT (bare or not) in place of the one on GitHub

Candidates are settings of (vocabulary, depth, tokens in an update, learning rate): each of the four is spread evenly over its range and shuffled
with the seed, and all sides are given the same list. Layers are 64 * depth wide with heads of 64. The best of the trials, by bits per byte of
the validation documents, is trained for the whole time and measured on the test documents. The learning rate of each side comes to its end with
the time: danlu's by its plan, the peers' by the clock. danlu's clock runs from its first update, with validations (of 64 documents) and checkpoints; the peers'
only from the second, so that compiling is free for them. Tokenizers are learned, and text is tokenized, before any clock runs.

Bits per byte: nats of all tokens of a held-out document, the end among them, each document read from its beginning mark alone in pieces of
`context` tokens, over ln 2 and the document's bytes. One function (`nats`) computes it for all sides, in float32.

Finished trainings are kept in DIR/race.jsonl and not repeated; one that was killed begins anew, since it is timed. Run nothing else meanwhile.
nanoGPT is cloned at a fixed commit, and nanogpt.patch lets it run at its best here: bfloat16 autocast, threads and a fused AdamW on a CPU, a time
limit. litgpt runs in .venv-litgpt with a fused AdamW, the shape of danlu's model (Llama) and a loader of our tokens (race_litgpt.py).
"""

from __future__ import annotations

import json
import math
import pickle
import random
import re
import shutil
import statistics
import sys
from pathlib import Path


HERE = Path(__file__).parent
NANOGPT = "https://github.com/karpathy/nanoGPT"
COMMIT = "3adf61e154c3fe3fca428ad6bc3818b27a3b8291"
RANGES = {"vocabulary": (2048, 4096, 8192), "depth": (3, 4, 5, 6, 8), "batch": (4096, 8192, 16384)}
RATES = (5e-4, 3e-2)
"""Of the learning rate, evenly in logarithms."""
WARMUP = 0.06
"""Share of the time in which a peer's learning rate rises; danlu's default."""


def nats(logits, documents, context):
    """Nats of each document, float64 [documents].

    logits: int64 [rows, tokens] -> [rows, tokens, vocabulary], causal. documents: ids of each, with the mark that begins and the one that ends
    it. Longer ones are read in pieces of `context` tokens, the token behind a piece being its last target.
    """
    import numpy as np
    import torch

    pieces = [
        (number, torch.from_numpy(ids[at : at + context + 1].astype(np.int64)))
        for number, ids in enumerate(documents)
        for at in range(0, len(ids) - 1, context)
    ]
    pieces.sort(key=lambda each: len(each[1]))
    found = np.zeros(len(documents))
    with torch.inference_mode():
        for start in range(0, len(pieces), 16):
            owners, rows = zip(*pieces[start : start + 16], strict=True)
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)  # behind: none looks there
            given = logits(ids[:, :-1].clamp_min(0)).float().transpose(1, 2)
            losses = torch.nn.functional.cross_entropy(given, ids[:, 1:], ignore_index=-1, reduction="none")
            np.add.at(found, list(owners), losses.double().sum(1).numpy())
    return found


def rate_at(share, peak):
    """nanoGPT's schedule, by the share of the time: linear warm-up, cosine to a tenth."""
    if share < WARMUP:
        return peak * share / WARMUP
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, (share - WARMUP) / (1 - WARMUP)))))


def padded(vocabulary):
    """Rows of the embedding, on all sides."""
    return 64 * math.ceil(vocabulary / 64)


# ------------------------------------------------------------------------------------------------------------- the text


def tokens(files, vocabulary, out):
    """A folder with the text in tokens, as nanoGPT reads it: train.bin, meta.pkl; held-out documents in validation.npz and test.npz."""
    import numpy as np
    from trainings import tokenizer

    from danlu.data.tokenizer import Tokenizer

    folder = out / f"tokens-{vocabulary}"
    if (folder / "meta.pkl").is_file():
        return folder
    folder.mkdir(exist_ok=True)
    learned = Tokenizer.load(tokenizer(files, vocabulary, out))
    for part, file in files.items():
        texts = [json.loads(line)["text"] for line in file.read_text("utf-8").splitlines()]
        documents = learned.documents(texts, causal=True)
        if part == "train":  # one mark between documents, where each has one at its beginning and one at its end
            joined = np.concatenate([documents[0][:1], *(each[1:] for each in documents)])
            joined.astype(np.uint16).tofile(folder / "train.bin")
        else:
            ends = np.cumsum([len(each) for each in documents])
            sizes = [len(text.encode()) for text in texts]
            np.savez(folder / f"{part}.npz", ids=np.concatenate(documents), ends=ends, sizes=sizes)
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": padded(vocabulary)}))
    return folder


def held_out(folder, part):
    """(ids of each document, bytes of each)."""
    import numpy as np

    with np.load(folder / f"{part}.npz") as found:
        return np.split(found["ids"], found["ends"][:-1]), found["sizes"]


# ------------------------------------------------------------------------------------------------------------ the sides


def measured(logits, folder, context):
    """Nats of each held-out document, by part, rounded for a line of JSON."""
    return {part: [round(each, 3) for each in nats(logits, held_out(folder, part)[0], context).tolist()] for part in ("validation", "test")}  # fmt: skip


def our_settings(job, files, out):
    """Of a training of danlu's."""
    from trainings import tokenizer

    return {
        "data": files["train"], "validation": files["validation"], "test_share": 0, "near": 0, "depth": job["depth"],
        "tokenizer": tokenizer(files, job["vocabulary"], out), "max_tokens": job["context"],
        "batch_size": job["batch"] // job["context"], "learning_rate": job["learning_rate"],
        "precision": job["precision"], "threads": job["threads"], "baselines": "false", "validation_rows": 64,
    }  # fmt: skip


def by_danlu(job, files, out, name):
    from trainings import danlu
    from transformers import AutoModelForCausalLM

    run = out / name
    shutil.rmtree(run, ignore_errors=True)
    danlu("pretrain", "gpt", out=run, hours=job["minutes"] / 60, **our_settings(job, files, out))
    model = AutoModelForCausalLM.from_pretrained(run / "model").float().eval()
    learned = sum(json.loads(line).get("tokens", 0) for line in (run / "metrics.jsonl").read_text().splitlines())
    found = measured(lambda ids: model(ids).logits, tokens(files, job["vocabulary"], out), job["context"])
    seconds = json.loads((run / "run.json").read_text())["seconds"]
    shutil.rmtree(run)
    return {"nats": found, "tokens": learned, "seconds": seconds}


def clone(source, out):
    """nanoGPT at a fixed commit, with our patch."""
    from trainings import command

    folder = out / "nanoGPT"
    if not (folder / ".patched").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        command(["git", "clone", "--quiet", source, folder])
        command(["git", "-C", folder, "checkout", "--quiet", COMMIT])
        command(["git", "-C", folder, "apply", HERE / "nanogpt.patch"])
        (folder / ".patched").touch()
    return folder


def nanogpt(job, files, out, place, **more):
    """What nanoGPT's train.py said."""
    from trainings import command

    micro = min(job["micro"], job["batch"])
    settings = {
        "dataset": tokens(files, job["vocabulary"], out), "out_dir": place, "device": "cpu", "dtype": job["precision"], "threads": job["threads"],
        "eval_interval": 0, "n_layer": job["depth"], "n_head": job["depth"], "n_embd": 64 * job["depth"], "block_size": job["context"],
        "batch_size": micro // job["context"], "gradient_accumulation_steps": job["batch"] // micro,
        "learning_rate": job["learning_rate"], "min_lr": job["learning_rate"] / 10,
        "lr_decay_iters": 1000, "warmup_iters": round(1000 * WARMUP), **more,
    }  # fmt: skip
    folder = clone(job["source"], out)
    return command(
        ["env", "-C", folder, sys.executable, "train.py", *(f"--{key}={value}" for key, value in settings.items())],
        OMP_NUM_THREADS=str(job["threads"]),
    )


def by_nanogpt(job, files, out, name):
    import importlib.util

    import torch

    place = out / name
    nanogpt(job, files, out, place, max_seconds=job["minutes"] * 60.0, max_iters=10**9)
    found = importlib.util.spec_from_file_location("nanogpt_model", out / "nanoGPT" / "model.py")
    theirs = importlib.util.module_from_spec(found)
    sys.modules[found.name] = theirs
    found.loader.exec_module(theirs)
    kept = torch.load(place / "ckpt.pt", weights_only=True)
    model = theirs.GPT(theirs.GPTConfig(**kept["model_args"])).eval()
    model.load_state_dict({key.removeprefix("_orig_mod."): value for key, value in kept["model"].items()})
    result = measured(lambda ids: model(ids, ids)[0], tokens(files, job["vocabulary"], out), job["context"])
    shutil.rmtree(place)
    return {"nats": result, "tokens": kept["iter_num"] * job["batch"], "seconds": kept["seconds"]}


def by_litgpt(job, files, out, name):
    from finetune import LITGPT
    from peers import interpreter
    from trainings import command

    place = out / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    asked = job | {"tokens": tokens(files, job["vocabulary"], out), "place": place}
    (place / "job.json").write_text(json.dumps(asked, default=str))
    python = interpreter(".venv-litgpt", LITGPT)
    command([python, HERE / "race_litgpt.py", place / "job.json"], OMP_NUM_THREADS=str(job["threads"]))
    result = json.loads((place / "result.json").read_text())
    shutil.rmtree(place)
    return result


SIDES = {"danlu": by_danlu, "nanogpt": by_nanogpt, "litgpt": by_litgpt}


# ------------------------------------------------------------------------------------------------------------- the race


def candidates(count, seed):
    """So many settings: each spread evenly over its range, in an order of its own."""
    dice, columns = random.Random(seed), {}
    for key, choices in RANGES.items():
        columns[key] = [choices[place * len(choices) // count] for place in range(count)]
    low, high = map(math.log, RATES)
    columns["learning_rate"] = [float(f"{math.exp(low + (high - low) * (place + 0.5) / count):.2g}") for place in range(count)]  # fmt: skip
    for column in columns.values():
        dice.shuffle(column)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def bits(result, folder, part):
    """Bits per byte over all documents of a part."""
    return sum(result["nats"][part]) / math.log(2) / float(held_out(folder, part)[1].sum())


def race(keys, common, files, out):
    """Trials in turns, then each side's best for the whole time, and the table."""
    import numpy as np
    from trainings import Kept

    from danlu.evaluation.compare import compare
    from danlu.evaluation.metrics import ratio

    kept, sides = Kept(out / "race.jsonl"), keys["sides"].split(",")
    listed, trials = candidates(keys["trials"], keys["seed"]), {side: [] for side in sides}

    def made(side, candidate, minutes):
        """One training: its settings, its result, its bits per byte of the validation documents."""
        job = {"side": side, "minutes": minutes, **common, **candidate}

        def train(name):
            print(f"{side}, {minutes:g} minutes: {candidate}", flush=True)
            return SIDES[side](job, files, out, f"{side}-{name}")

        told = {key: value for key, value in job.items() if key != "source"}
        result = kept(told, train)
        found = bits(result, tokens(files, candidate["vocabulary"], out), "validation")
        print(f"{side}, {minutes:g} minutes: {candidate}: {found:.4f} bits per byte, {result['tokens']:,} tokens")
        return candidate, result, found

    for candidate in listed:
        for side in sides:
            trials[side].append(made(side, candidate, keys["trial_minutes"]))
    rows = {}
    for side in sides:
        best = min(trials[side], key=lambda each: each[2] if each[2] == each[2] else math.inf)[0]
        rows[side] = made(side, best, keys["minutes"])
    sizes = held_out(tokens(files, listed[0]["vocabulary"], out), "test")[1]
    ours = np.array(rows[sides[0]][1]["nats"]["test"]) / math.log(2)
    lines = [
        f"| | settings | tokens | passes | seconds | bits per byte, test | {sides[0]} against it |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for side, (candidate, result, _) in rows.items():
        theirs, said = np.array(result["nats"]["test"]) / math.log(2), ""
        if side != sides[0]:
            found = compare(
                lambda counts, sums: ratio(sums, counts), theirs, ours, sizes, names=(side, sides[0]), metric="bits per byte",
                higher_is_better=False, points=False,
            )  # fmt: skip
            least, most = (found[key] / found["first"] for key in ("low", "high"))
            said = f"{found['difference'] / found['first']:+.1%} [{least:+.1%}, {most:+.1%}]"
        about = ", ".join(f"{key} {value}" for key, value in candidate.items())
        passes = result["tokens"] / ((tokens(files, candidate["vocabulary"], out) / "train.bin").stat().st_size / 2)
        lines.append(f"| {side} | {about} | {result['tokens']:,} | {passes:.1f} | {result['seconds']:.0f} | {theirs.sum() / sizes.sum():.4f} | {said} |")  # fmt: skip
    (out / "race.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(["", *lines]))


# ---------------------------------------------------------------------------------------------------------------- speed


def speed(keys, common, files, out):
    """Tokens a second between the ends of step 2 and of the last one, by the clock, loading and all; both with AdamW."""
    job = {**common, **{key: keys[key] for key in ("depth", "vocabulary", "batch", "steps")}, "learning_rate": 1e-3}
    place = out / "speed"

    def theirs(micro):
        said = nanogpt(job | {"micro": micro}, files, out, place, max_iters=job["steps"] - 1)
        spent = [float(each) for each in re.findall(r"time ([\d.]+)ms", said)]
        return job["batch"] * len(spent[2:]) / sum(spent[2:]) * 1000

    def mine():
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from trainings import danlu

        shutil.rmtree(place, ignore_errors=True)
        steps = {"steps": job["steps"], "validate_every": job["steps"], "optimizer": "adamw"}
        danlu("pretrain", "gpt", out=place, **our_settings(job, files, out), **steps)
        ends = [each.wall_time for each in EventAccumulator(str(place / "events")).Reload().Scalars("timing/seconds")]
        lines = map(json.loads, (place / "metrics.jsonl").read_text().splitlines())
        made = [line["tokens"] for line in lines if "tokens" in line]
        return sum(made[2:]) / (ends[-1] - ends[1])

    tried = {}
    micro = job["context"]
    while micro <= job["batch"]:
        tried[micro] = theirs(micro)
        print(f"nanoGPT, {micro} tokens in a forward pass: {tried[micro]:,.0f} tokens/s", flush=True)
        micro *= 2
    best, rows = max(tried, key=tried.get), []
    for _ in range(keys["pairs"]):
        rows.append((mine(), theirs(best)))
        print(f"danlu {rows[-1][0]:,.0f}, nanoGPT {rows[-1][1]:,.0f} tokens/s", flush=True)
    shutil.rmtree(place)
    ours, other = (statistics.median(each) for each in zip(*rows, strict=True))
    ratio = statistics.median(one / two for one, two in rows)
    about = ", ".join(f"{key} {value}" for key, value in job.items() if key not in ("source", "learning_rate", "micro"))
    print(f"\n{about}: danlu {ours:,.0f} tokens/s, nanoGPT compiled {other:,.0f} ({best} tokens a pass), medians of {keys['pairs']}; {ratio:.2f} times as many")  # fmt: skip


def main(arguments):
    from trainings import danlu, keys_of, texts

    keys = keys_of(
        arguments[1:], __doc__, minutes=30.0, trials=8, trial_minutes=2.0, seed=0, sides="danlu,nanogpt,litgpt", context=256, micro=2048,
        depth=6, vocabulary=4096, batch=8192, steps=12, pairs=5, precision="", nanogpt=NANOGPT,
    )  # fmt: skip
    if arguments[0] not in ("run", "speed") or {*keys["sides"].split(",")} - SIDES.keys():
        raise SystemExit(__doc__)
    out = Path(keys["out"]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    files = texts(keys["data"], out)
    said = danlu("plan", "gpt", "--json", "fresh=yes", hours=keys["minutes"] / 60)
    machine = json.loads(said[said.index("{\n") :])
    common = {
        "context": keys["context"], "micro": keys["micro"], "precision": keys["precision"] or machine["precision"],
        "threads": machine["threads"], "source": Path(keys["nanogpt"]).resolve() if Path(keys["nanogpt"]).exists() else keys["nanogpt"],
    }  # fmt: skip
    (race if arguments[0] == "run" else speed)(keys, common, files, out)


if __name__ == "__main__":
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    main(sys.argv[1:])
