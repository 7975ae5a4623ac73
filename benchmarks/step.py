"""Where the time of a fine-tuning step goes: a bar for each line of work of finetune.py, by kinds of operations, as a picture.

    python benchmarks/step.py docs/images/step.svg [lora full mixed] [steps=4]

Steps are made by `training.fit` on the same rows as in finetune.py, after two that are not counted. An operation's time is its own, without
what it calls; what is left of the clock is Python between the operations. Run nothing else meanwhile.
"""

from __future__ import annotations

import sys
import tempfile
import time
from html import escape
from pathlib import Path


KINDS = {  # what is in no list is element-wise
    "matrix products": ("aten::mm", "aten::addmm", "aten::addmm_", "aten::linear"),
    "attention": ("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_softmax_backward_data"),
    "element-wise": (),
    "copies": ("aten::copy_", "aten::index_select", "aten::index_copy_", "aten::cat", "aten::fill_", "aten::zero_", "aten::index"),
    "random draws": ("aten::random_", "aten::bernoulli_"),
    "optimizer": ("aten::_fused_adamw_", "aten::linalg_vector_norm"),
    "Python": (),
}  # fmt: skip
COLOURS = ("#7fb3e6", "#bcd9f5", "#d69e2e", "#a0aec0", "#9f7aea", "#48bb78", "#e2e8f0")
OURS = (
    "_RMSNorm",
    "_SwiGLU",
    "_Rotate",
    "_Spread",
    "_Collect",
    "_Adapted",
    "_TokenLoss",
    "_Dropout",
    "autograd::",
    "Optimizer.",
    "ProfilerStep",
)
"""Python that calls operations: its own time is between them."""


def measured(name, steps):
    """{kind: seconds a step}, tokens a step."""
    from finetune import Work, write
    from torch.profiler import ProfilerActivity, profile

    from danlu.api import asked
    from danlu.stages.build import build
    from danlu.stages.prepare import prepare
    from danlu.training.fit import fit

    work = Work(name, {})
    with tempfile.TemporaryDirectory() as scratch:
        files = {"data": work.train, "validation": work.heldout, "test": work.tests}
        for part, rows in files.items():
            write(Path(scratch, f"{part}.jsonl"), rows)
        settings = {part: f"{scratch}/{part}.jsonl" for part in files if part != "data"} | {
            "model": work.model, "method": work.method, "steps": steps + 2, "batch_size": work.batch, "learning_rate": work.rate,
            "schedule": "constant", "warmup": 0, "max_tokens": work.limit, "near": 0,
        }  # fmt: skip
        recipe = "chat" if work.chat else "text-classification"
        prepared = prepare(asked(recipe, f"{scratch}/data.jsonl", settings)[0], None, lambda _: None)
    built = build(prepared, lambda _: None)
    built.model.train()
    fit(built.state, 2)
    tokens = []
    with profile(activities=[ProfilerActivity.CPU]) as found:
        began = time.perf_counter()
        fit(built.state, 2 + steps, [lambda _, step: tokens.append(sum(batch.size for batch in step.window))])
        took = time.perf_counter() - began
    seconds = dict.fromkeys(KINDS, 0.0)
    for each in found.key_averages():
        if not each.key.startswith(OURS):
            kind = next((kind for kind, names in KINDS.items() if each.key in names), "element-wise")
            seconds[kind] += each.self_cpu_time_total / 1e6
    seconds["Python"] = max(0.0, took - sum(seconds.values()))
    return {kind: each / steps for kind, each in seconds.items()}, sum(tokens) / steps


def picture(rows):
    """An SVG: a bar a line of work, as wide for each, with the share of every kind."""
    left, wide, high = 90, 620, 34
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + wide + 20} {high * len(rows) + 76}" font-family="sans-serif" font-size="13" role="img">',
        "<title>Where the time of a step goes</title>",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for row, (name, seconds) in enumerate(rows.items()):
        at, top, total = float(left), 8 + row * high, sum(seconds.values())
        lines.append(f'<text x="{left - 8}" y="{top + 18}" text-anchor="end">{escape(name)}</text>')
        for (kind, each), colour in zip(seconds.items(), COLOURS, strict=True):
            width = wide * each / total
            lines.append(
                f'<rect x="{at:.1f}" y="{top}" width="{width:.1f}" height="{high - 8}" fill="{colour}"><title>{kind}: {each / total:.1%}</title></rect>'
            )
            if width > 34:
                lines.append(
                    f'<text x="{at + width / 2:.1f}" y="{top + 18}" text-anchor="middle">{each / total:.0%}</text>'
                )
            at += width
    for place, (kind, colour) in enumerate(zip(KINDS, COLOURS, strict=True)):
        x, y = left + place % 4 * 155, high * len(rows) + 22 + place // 4 * 24
        lines.append(
            f'<rect x="{x}" y="{y}" width="13" height="13" fill="{colour}"/><text x="{x + 19}" y="{y + 11}">{kind}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


def main(arguments):
    keys = dict(word.split("=", 1) for word in arguments if "=" in word)
    places = [word for word in arguments if "=" not in word]
    if not places or set(keys) - {"steps"}:
        raise SystemExit(__doc__)
    rows = {}
    for name in places[1:] or ["lora", "full", "mixed"]:
        rows[name], tokens = measured(name, int(keys.get("steps", 4)))
        total = sum(rows[name].values())
        shares = ", ".join(f"{kind} {each / total:.1%}" for kind, each in rows[name].items())
        print(f"{name}: {tokens:,.0f} tokens in {total:.2f} s a step: {shares}", flush=True)
    Path(places[0]).write_text(picture(rows), encoding="utf-8")
    print(places[0])


if __name__ == "__main__":
    main(sys.argv[1:])
