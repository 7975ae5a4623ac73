"""danlu's fine-tuning, through its command line, against TRL + PEFT, transformers' Trainer and litgpt on this machine: the same rows in each step.

    python benchmarks/finetune.py lora      LoRA r=16 on all linear layers of SmolLM2-135M, 8 rows a step
    python benchmarks/finetune.py joined    the same, a row of conversations joined to 2,048 tokens a step (tokens=8192)
    python benchmarks/finetune.py full      all weights of SmolLM2-135M, 8 rows a step; litgpt too
    python benchmarks/finetune.py mixed     all weights of a MiniLM classifier, 16 rows of mixed lengths a step
    python benchmarks/finetune.py long      the same, rows of 256 tokens
    python benchmarks/finetune.py start     from the command to the first finished step, weights in the cache
    python benchmarks/finetune.py equal     held-out loss after steps=200 of work=lora, of three seeds on either side
    python benchmarks/finetune.py options   danlu alone, work=lora: what each setting of its speed is worth
    python benchmarks/finetune.py all       everything above

    pairs=5           so often each is timed, in alternation; medians are told
    steps=8           updates each time; from the third on they count
    data=FILE.jsonl   other rows: messages, or text and label, or tokens and file (Brown); also .gz
    only=precision    options: this one alone; threads, micro_batch_tokens, environment (how threads wait)
    trials=no         leaves out the search for the peer's best mode; peer=… then names it, such as peer=float32,micro=2

A rate is real tokens, no padding, over the clock between the ends of step 2 and the last. Memory is that of all processes of the whole command.
Beside each pair the machine's fastest matrix product is measured; a share of the peak is that of the arithmetic that the work cannot do without.
Peers live in environments of their own, .venv-trainers and .venv-litgpt, made when they are first needed. Run nothing else meanwhile.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from peers import OUTSIDE, ROOT, TRAINERS, TooSlowError, interpreter, run


HERE = Path(__file__).parent
DANLU = [str(Path(sys.executable).with_name("danlu")), "finetune"]
LITGPT = ["torch==2.13.0", "litgpt==0.5.13", "requests==2.32.5"]
"""Its reader of settings wants requests and does not ask for it."""
HELD_OUT = 64
TEMPLATE = (  # SmolLM2's, saying which tokens are learned
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)


# --------------------------------------------------------------------------------------------------------------- work


@dataclass(frozen=True)
class Mode:
    """How a peer computes the same: dtype float32, autocast (bfloat16 over float32 weights) or bfloat16 (weights too), rows of a forward pass.

    None is what the peer does when it is not told.
    """

    dtype: str | None = None
    micro: int | None = None
    sampling: str = "sequential"
    padding_free: bool = False
    checkpointing: bool | None = None
    program: str = "trainer"

    def __str__(self):
        told = [
            self.dtype,
            self.micro and f"micro={self.micro}",
            self.sampling if self.sampling != "sequential" else None,
        ]
        told += ["padding_free" if self.padding_free else None, "litgpt" if self.program == "litgpt" else None]
        told += [f"checkpointing={'yes' if self.checkpointing else 'no'}" if self.checkpointing is not None else None]
        return ",".join(filter(None, told)) or "as it comes"


def mode_of(text):
    """What `str` of a mode says."""
    mode = {"checkpointing": False}
    for word in text.split(","):
        name, _, value = word.partition("=")
        if name in ("micro", "checkpointing"):
            mode[name] = int(value) if name == "micro" else value == "yes"
        elif name in ("group_by_length", "batch_rebalance"):
            mode["sampling"] = name
        elif name in ("padding_free", "litgpt"):
            mode |= {"padding_free": True} if name == "padding_free" else {"program": "litgpt"}
        else:
            mode["dtype"] = name
    return Mode(**mode)


class Work:
    """One line of work: its model, its rows, and the rows of each step."""

    def __init__(self, name, keys):
        self.name = name
        self.chat = name in ("lora", "joined", "full")
        self.method = "full" if name in ("full", "mixed", "long") else "lora"
        self.batch = int(keys.get("batch_size", {"joined": 1}.get(name, 8 if self.chat else 16)))
        self.model = "smollm2-135m" if self.chat else "minilm"
        self.rate = {"lora": 2e-4, "full": 2e-5}[self.method] if self.chat else 5e-5
        self.most = int(keys.get("tokens", 2048)) if name == "joined" else 256 if name == "long" else None
        default = "descriptions_chat.jsonl" if self.chat else "sections.jsonl"
        self.source = Path(keys.get("data", ROOT / "examples" / "data" / default))
        rows = read(self.source, self.chat)
        random.Random(0).shuffle(rows)
        if self.most:
            rows = joined(rows, self.most, self.tokenizer, self.chat)
        rows = rows[: int(keys.get("rows", 4000))]
        aside = min(HELD_OUT, len(rows) // 8)
        behind = aside + (min(8, aside) if self.chat else aside)  # every label has to be in a classifier's test
        self.heldout, self.tests, self.train = rows[:aside], rows[aside:behind], rows[behind:]
        self.train = self.train[: len(self.train) // self.batch * self.batch]
        self.labels = None if self.chat else sorted({row["label"] for row in self.train})
        self.limit = self.most or max(map(self.length, rows))

    @cached_property
    def folder(self):
        from danlu.models.base import resolve

        return resolve(self.model, lambda said: print(said, file=sys.stderr)).folder

    @cached_property
    def tokenizer(self):
        from danlu.data.tokenizer import Tokenizer

        return Tokenizer.load(self.folder, None)

    def taught(self, row):
        """The tokens of a conversation, and which are learned."""
        from danlu.data.chat import teach_all

        return teach_all([row["messages"]], self.tokenizer)[0][0]

    def length(self, row):
        return len(self.taught(row).ids) if self.chat else len(self.tokenizer.rust.encode(row["text"]).ids)

    def order(self, steps, seed):
        """The rows of so many steps, one behind the other, as danlu takes them."""
        from danlu.data.loader import Loader

        class Numbers:
            least = 1

            def __len__(inner):  # noqa: N805
                return len(self.train)

            def batches(inner, rows, most):  # noqa: N805
                return rows

        windows = itertools.islice(Loader(Numbers(), self.batch, 0, seed)(), steps)
        return [self.train[row] for window, _ in windows for row in window]


def read(path, chat):
    """Rows of a JSONL file that say different things: messages, or a text and its label."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    if chat:
        found = [{"messages": row["messages"]} for row in rows]
    elif "tokens" in rows[0]:  # a sentence of the Brown corpus and its genre
        found = [{"text": " ".join(row["tokens"]), "label": row["file"][:2]} for row in rows]
    else:
        found = [{"text": row["text"], "label": row["label"]} for row in rows]
    return list({json.dumps(next(iter(row.values()))).lower(): row for row in found}.values())


def joined(rows, most, tokenizer, chat):
    """Conversations one behind the other up to so many tokens, or texts of one label to at least so many."""
    found, parts, filled = [], [], 0
    if not chat:
        for label in sorted({row["label"] for row in rows}):
            for row in (row for row in rows if row["label"] == label):
                parts.append(row["text"])
                filled += len(tokenizer.rust.encode(row["text"]).ids) - 2
                if filled >= most:
                    found.append({"text": "\n".join(parts), "label": label})
                    parts, filled = [], 0
            parts, filled = [], 0
        random.Random(0).shuffle(found)
        return found
    for row in rows:
        size = sum(len(tokenizer.rust.encode(m["content"]).ids) + 6 for m in row["messages"])
        if parts and filled + size > most - 24:
            found.append({"messages": parts})
            parts, filled = [], 0
        parts, filled = parts + row["messages"], filled + size
    return found


# ------------------------------------------------------------------------------------------------------------- running


@dataclass(frozen=True)
class Run:
    """What came of a command. steps: of each `end` (on the clock), `tokens`, `learned`. began: on the clock. peak: bytes."""

    began: float
    steps: list
    heldout: float | None
    peak: int

    @property
    def rate(self):
        """Tokens a second from step 3 on."""
        return sum(step["tokens"] for step in self.steps[2:]) / (self.steps[-1]["end"] - self.steps[1]["end"])

    @property
    def first(self):
        """Seconds from the command to the first finished step."""
        return self.steps[0]["end"] - self.began


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def danlu(work, steps, seed=0, environment=None, **more):
    """A run of `danlu finetune`, read from what it wrote: metrics, and the clock from its TensorBoard events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        for name, rows in (("train", work.train), ("validation", work.heldout), ("test", work.tests)):
            write(place / f"{name}.jsonl", rows)
        files = {"data": "train", "validation": "validation", "test": "test"}
        settings = {key: f"{scratch}/{name}.jsonl" for key, name in files.items()} | {
            "model": work.model,
            "method": work.method,
            "out": f"{scratch}/run",
            "steps": steps,
            "batch_size": work.batch,
            "learning_rate": work.rate,
            "schedule": "constant",
            "warmup": 0,
            "weight_decay": 0,
            "validate_every": steps,
            "validation_rows": 16,
            "max_tokens": work.limit,
            "near": 0,
            "seed": seed,
        }
        settings |= {"answers": 0} if work.chat else {"baselines": "no"}
        words = [f"{key}={value}" for key, value in (settings | more).items()]
        began = time.time()
        _, peak = run([*DANLU, "chat" if work.chat else "text-classification", *words], **(environment or {}))
        events = EventAccumulator(f"{scratch}/run/events").Reload().Scalars("timing/seconds")
        lines = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
        figures = [line for line in lines if "tokens" in line]
        made = [
            {"end": event.wall_time, "tokens": line["tokens"], "learned": line["learned"]}
            for event, line in zip(events, figures, strict=True)
        ]
        heldout = next(line["validation"]["loss"] for line in lines if "validation" in line)
        return Run(began, made, heldout, peak)


def peer(work, mode, steps, seed=0, limit=None, measure=False):
    """The same by a peer, through its script."""
    python = (
        interpreter(".venv-litgpt", LITGPT) if mode.program == "litgpt" else interpreter(".venv-trainers", TRAINERS)
    )
    rows = {"train": work.order(steps, seed), "heldout": work.heldout}
    if mode.program == "litgpt":
        rows = {name: [vars(work.taught(row)) for row in part] for name, part in rows.items()}
    with tempfile.TemporaryDirectory() as scratch:
        job = vars(mode) | {
            "model": str(work.folder),
            "method": work.method,
            "labels": work.labels,
            "template": TEMPLATE,
            "max_tokens": work.limit,
            "batch": work.batch,
            "steps": steps,
            "learning_rate": work.rate,
            "seed": seed,
            "measure": measure,
            "rows": f"{scratch}/rows.json",
            "out": f"{scratch}/out.json",
            "scratch": f"{scratch}/work",
            "kept": str(ROOT / ".venv-litgpt" / "checkpoints" / work.folder.name),
        }
        Path(job["rows"]).write_text(json.dumps(rows))
        Path(scratch, "job.json").write_text(json.dumps(job))
        began = time.time()
        words = [python, HERE / f"finetune_{mode.program}.py", f"{scratch}/job.json"]
        _, peak = run(words, limit=limit, HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
        return Run(began, *json.loads(Path(job["out"]).read_text()).values(), peak)


def check_equal(ours, theirs, mode):
    """Stops where a step of the peer had other rows, or learned other tokens. Grouped or balanced by length they are the same rows in other steps."""
    one, two = ([(step["tokens"], step["learned"]) for step in each.steps] for each in (ours, theirs))
    if mode.sampling != "sequential":
        one, two = [tuple(map(sum, zip(*one, strict=True)))], [tuple(map(sum, zip(*two, strict=True)))]
    if one != two:
        raise SystemExit(f"{mode}: not the same work; tokens and learned tokens of each step: danlu {one}, peer {two}")


# ----------------------------------------------------------------------------------------------------------- the bound


def probe():
    """GFLOP/s of the fastest of three matrix products, for each number format that the machine multiplies; printed as JSON."""
    import torch

    from danlu.core.device import cores, machine

    torch.set_num_threads(cores())
    fastest = {}
    for name in ("float32", "bfloat16") if machine().bf16 else ("float32",):
        for m, k, n in ((2048, 576, 1536), (1024, 1024, 1024), (2048, 2048, 2048)):
            a, b = torch.ones(m, k, dtype=getattr(torch, name)), torch.ones(n, k, dtype=getattr(torch, name))
            torch.nn.functional.linear(a, b)
            for _ in range(9):
                began = time.perf_counter()
                torch.nn.functional.linear(a, b)
                fastest[name] = max(fastest.get(name, 0.0), 2e-9 * m * k * n / (time.perf_counter() - began))
    print(json.dumps(fastest))


def probed():
    """The machine's peak now, in GFLOP/s by number format."""
    words = [sys.executable, __file__, "probe"]
    found = subprocess.run(
        words, capture_output=True, text=True, check=True, env=OUTSIDE | {"OMP_WAIT_POLICY": "ACTIVE"}
    ).stdout
    return json.loads(found)


def flop(work, steps, seed=0):
    """Floating-point operations a token of these rows cannot do without, and their parts: 2 a weight forward, 2 for the slope of what came
    in, 2 for the slope of the weight if it is trained.

    Attention counts only what a token may see; the output matrix only learned tokens; nothing is counted that is padding, kept back and
    computed again, or element-wise.
    """
    config = json.loads((work.folder / "config.json").read_text())
    width, layers, inner = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    d, kv = config.get("head_dim") or width // heads, config.get("num_key_value_heads") or heads
    shapes = [(width, heads * d), (width, kv * d), (width, kv * d), (heads * d, width)]
    shapes += [(width, inner)] * (2 if work.chat else 1) + [(inner, width)]  # gate and up, or one matrix
    matrices = layers * sum(a * b for a, b in shapes)
    rows = work.order(steps, seed)
    lengths = [min(work.length(row), work.limit) for row in rows]
    tokens = sum(lengths)
    seen = sum(n * (n + 1) / 2 if work.chat else n * n for n in lengths)
    parts = {
        "matrices": (4 if work.method == "lora" else 6) * matrices,
        "attention": 3 * layers * 4 * heads * d * seen / tokens,
    }
    if work.method == "lora":
        parts["adapters"] = 6 * layers * 16 * sum(a + b for a, b in shapes)
    if work.chat:
        learned = sum(sum(work.taught(row).learned) for row in rows)
        parts["output"] = (4 if work.method == "lora" else 6) * config["vocab_size"] * width * learned / tokens
    else:
        parts["output"] = 6 * (width * width + width * len(work.labels)) * len(rows) / tokens
    return sum(parts.values()), parts


# ---------------------------------------------------------------------------------------------------------- measured


def search(work, steps):
    """The peer's fastest mode: number format, then micro-batch, then order, each from the best so far; printed. And whether the peer as it
    comes is done in four times the time of the fastest number format, so that it can be timed again and again."""
    tried = {}

    def trial(mode, patience=2):
        limit = 30 + patience * min((seconds for seconds, _ in tried.values()), default=1e6)
        began = time.monotonic()
        try:
            rate = peer(work, mode, steps, limit=limit).rate
            print(f"  {mode!s:60} {rate:8.1f} tokens/s", flush=True)
        except TooSlowError as error:
            rate = 0.0
            print(f"  {mode!s:60} {error}", flush=True)
        tried[mode] = (time.monotonic() - began, rate)
        return rate

    def best(modes):
        return max((tried[mode][1] if mode in tried else trial(mode), place, mode) for place, mode in enumerate(modes))[
            2
        ]

    dtypes = ["float32", "autocast"] + (["bfloat16"] if work.method == "lora" else [])
    micros = [size for size in (1, 2, 8, 16) if size <= work.batch]
    chosen = best([Mode(dtype, checkpointing=False) for dtype in dtypes])
    bearable = trial(Mode(), patience=4) > 0
    chosen = best([chosen, *(Mode(chosen.dtype, size, checkpointing=False) for size in micros if size < work.batch)])
    others = [Mode(chosen.dtype, chosen.micro, "group_by_length", checkpointing=False)]
    if work.batch > 1:
        others.append(Mode(chosen.dtype, chosen.micro or work.batch // 2, "batch_rebalance", checkpointing=False))
        others += [Mode(chosen.dtype, padding_free=True, checkpointing=False)] if work.chat else []
    chosen = best([chosen, *(others if work.most is None else [])])
    if work.name == "full":
        chosen = best([chosen, *(Mode("float32", size, program="litgpt") for size in micros)])
    return chosen, bearable


def compare(work, pairs, steps, mode):
    """Rates of danlu, the peer at its best and the peer as it comes, in alternation, beside the machine's peak."""
    print(
        f"\n{work.name}: {work.model}, {work.method}, {work.batch} rows a step, {steps} steps; {work.source.name}",
        flush=True,
    )
    mode, bearable = (mode, False) if mode else search(work, 5)
    needed, parts = flop(work, steps)
    print("  MFLOP a token:", f"{needed / 1e6:.0f}", {name: round(value / 1e6, 1) for name, value in parts.items()})
    programs = {"best": mode, "default": Mode()} if bearable else {"best": mode}
    runs, peaks = {name: [] for name in ("danlu", *programs)}, []
    for _ in range(pairs):
        peaks.append(probed())
        runs["danlu"].append(danlu(work, steps))
        for name, each in programs.items():
            runs[name].append(peer(work, each, steps))
            check_equal(runs["danlu"][-1], runs[name][-1], each)
    peak = {name: statistics.median(each[name] for each in peaks) for name in peaks[0]}
    print("  peak of matrix products, GFLOP/s:", {name: round(value) for name, value in peak.items()})
    for name, each in runs.items():
        rate = statistics.median(one.rate for one in each)
        shares = {form: needed * rate / 1e9 / most for form, most in peak.items()}
        print(
            f"  {name:8} {rate:8.1f} tokens/s {[round(one.rate, 1) for one in each]}, "
            f"{statistics.median(one.peak for one in each) / 1e6:,.0f} MB, of the peak"
            + "".join(f" {share:.1%} ({form})" for form, share in shares.items())
            + f", first step after {statistics.median(one.first for one in each):.1f} s"
            + (f"; {programs[name]}" if name in programs else "")
        )
    for name in programs:
        ratio = statistics.median(a.rate / b.rate for a, b in zip(runs["danlu"], runs[name], strict=True))
        print(f"  danlu is {ratio:.2f} times as fast as {name}", flush=True)


def start(work, pairs):
    """From the command to the first finished step; what is in a cache has been used once before."""
    print(f"\nstart: {work.model}, {work.method}, {work.batch} rows a step", flush=True)
    mode = Mode("float32", checkpointing=False)
    danlu(work, 2), peer(work, mode, 2)
    rows = [(danlu(work, 2).first, peer(work, mode, 2).first) for _ in range(pairs)]
    for place, name in enumerate(("danlu", "TRL")):
        print(
            f"  {name:8} {statistics.median(row[place] for row in rows):6.1f} s", [round(row[place], 1) for row in rows]
        )
    print(f"  danlu is {statistics.median(b / a for a, b in rows):.2f} times sooner", flush=True)


def equal(work, steps, seeds, mode):
    """Held-out loss after so many steps on the same rows in the same order; the median of ours within the peer's range?"""
    print(f"\nequal: {work.name}, {steps} steps, seeds 0 to {seeds - 1}", flush=True)
    ours, theirs = [], []
    for seed in range(seeds):
        one, two = danlu(work, steps, seed, validation_rows=HELD_OUT), peer(work, mode, steps, seed, measure=True)
        check_equal(one, two, mode)
        ours.append(one.heldout)
        theirs.append(two.heldout)
        print(f"  seed {seed}: danlu {ours[-1]:.5f}, peer {theirs[-1]:.5f}", flush=True)
    within = min(theirs) <= statistics.median(ours) <= max(theirs)
    print(
        f"  the median of danlu, {statistics.median(ours):.5f}, is {'within' if within else 'OUTSIDE'} {min(theirs):.5f} to {max(theirs):.5f}"
    )


def options(work, pairs, steps, only):
    """Each setting that changes speed alone, against the default, in alternation. only: those with this in their name."""
    print(f"\noptions: {work.name}, {work.batch} rows a step; rate over that with the defaults", flush=True)
    variants = [{"threads": 1}, *({"micro_batch_tokens": size} for size in (128, 512, 1024, 4096))]
    variants += [{"precision": each} for each in ("float32", "bfloat16")]
    waits = (
        {"OMP_WAIT_POLICY": "PASSIVE"},
        {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"},
        {"OMP_WAIT_POLICY": "ACTIVE"},
    )
    variants += [{"environment": each} for each in waits]  # of threads: asleep at once, after a while, never
    for variant in (each for each in variants if only in str(each)):
        rows = [(danlu(work, steps), danlu(work, steps, **variant)) for _ in range(pairs)]
        ratio = statistics.median(b.rate / a.rate for a, b in rows)
        memory = statistics.median(b.peak / a.peak for a, b in rows)
        print(f"  {variant!s:32} {ratio:5.2f} times the rate, {memory:5.2f} times the memory", flush=True)


COMPARED = ("lora", "joined", "full", "mixed", "long")
COMMANDS = (*COMPARED, "start", "equal", "options")


def main(arguments):
    names = [word for word in arguments if "=" not in word]
    keys = dict(word.split("=", 1) for word in arguments if "=" in word)
    if names == ["probe"]:
        probe()
        return
    if names == ["all"]:
        names = list(COMMANDS)
    if not names or set(names) - set(COMMANDS):
        raise SystemExit(__doc__)
    pairs, steps, mode = int(keys.get("pairs", 5)), int(keys.get("steps", 8)), None
    if "peer" in keys or keys.get("trials") == "no":
        mode = mode_of(keys.get("peer", "float32"))
    for name in names:
        work = Work(name if name in COMPARED else keys.get("work", "lora"), keys)
        if name in COMPARED:
            compare(work, pairs, steps, mode)
        elif name == "start":
            start(work, pairs)
        elif name == "equal":
            equal(
                work,
                int(keys.get("steps", 200)),
                int(keys.get("seeds", 3)),
                mode or Mode("float32", checkpointing=False),
            )
        else:
            options(work, pairs, steps, keys.get("only", ""))


if __name__ == "__main__":
    main(sys.argv[1:])
