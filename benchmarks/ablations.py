"""What the defaults of `danlu pretrain gpt` are worth: optimizer, the embeddings' rate, schedule and initial weights, trained side by side on one text.

    python benchmarks/ablations.py data=FILE.jsonl out=DIR

    minutes=5         length of one training. The steps that the default training makes in it (`danlu plan`) are made by all: equal tokens
    steps=N           equal tokens too: so many steps each
    equal=minutes     every training gets the minutes instead (`hours=`), and makes the steps that its own plan says
    seeds=3           trainings of each choice
    rates=4           learning rates tried for each optimizer, beside those seeds and with another one; the same number for all
    only=optimizer,embeddings,schedule,initialise
    depth=4 vocabulary=4096 context=256 batch=16     of the network; tokens in a row; rows in an update

Each training is one `danlu pretrain gpt …`, kept as a line of DIR/results.jsonl when it is finished. A command that was killed is given
again: finished trainings are not repeated, an unfinished one goes on from its checkpoint. DIR/*.md are the tables, DIR/*.svg the plots.

The text is cut once, by document and without near duplicates: all trainings learn from the same documents with the same tokenizer. A learning
rate is chosen by the validation documents, figures are of the test documents. Intervals are Student's, over differences paired by seed.
"""

from __future__ import annotations

import html
import json
import shutil
import statistics
import sys
from pathlib import Path

from trainings import FailedError, Kept, danlu, keys_of, texts, tokenizer


OPTIMIZERS = {  # name: settings, and the learning rates tried, the likeliest first
    "muon": ({"optimizer": "muon"}, (1e-2, 3e-3, 3e-2, 1e-3)),
    "adamw": ({"optimizer": "adamw"}, (3e-3, 1e-2, 1e-3, 3e-2)),
    "adam": ({"optimizer": "adam", "weight_decay": 0}, (3e-3, 1e-2, 1e-3, 3e-2)),
    "sgd, momentum 0.9": ({"optimizer": "sgd", "momentum": 0.9, "nesterov": "true", "weight_decay": 0}, (0.3, 0.1, 1, 0.03)),
    "sgd": ({"optimizer": "sgd", "momentum": 0, "weight_decay": 0}, (3, 1, 10, 0.3)),
}  # fmt: skip
PARTS = {  # the first of each is the default
    "embeddings": {"10 times": {}} | {f"{times} times": {"embeddings": times} for times in (1, 3, 30)},
    "schedule": {"wsd": {}} | {name: {"schedule": name} for name in ("cosine", "linear", "constant")},
    "initialise": {"zero_residual": {}}
    | {name: {"initialise": name} for name in ("normal", "xavier_uniform", "kaiming_normal", "orthogonal", "gpt2")},
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito 2008: told apart by the colour-blind too."""


def trained(folder, settings):
    """One training: bits per byte of the test, and on the way (share of the steps, bits per byte); None and nothing where it diverged."""
    try:
        danlu("pretrain", "gpt", out=folder, **settings)
    except FailedError as error:
        if "lower learning_rate" not in str(error):
            raise
        return {"test": None, "curve": []}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timings = [json.loads(line)["seconds"] for line in (folder / "timings.jsonl").read_text().splitlines()]
    curve = [(line["step"], line["validation"]["bits_per_byte"]) for line in lines if "validation" in line]
    result = {
        "test": json.loads((folder / "evaluation.json").read_text())["metrics"]["bits_per_byte"]["value"],
        "curve": [(step / curve[-1][0], found) for step, found in curve],
        "steps": len(timings),
        "seconds_per_step": statistics.median(timings),
    }
    shutil.rmtree(folder)
    return result


def last(result):
    """Validation bits per byte at the end."""
    return result["curve"][-1][1] if result["curve"] else float("inf")


def interval(differences):
    """Mean and half the width of its 95 % interval (Student), of differences paired by seed."""
    from scipy.stats import t

    mean, count = statistics.mean(differences), len(differences)
    wide = t.ppf(0.975, count - 1) * statistics.stdev(differences) / count**0.5 if count > 1 else float("nan")
    return mean, wide


def table(rows, head):
    """rows: name -> (settings worth telling, results by seed); the first is the default the others are paired with."""
    default = next(iter(rows.values()))[1]
    lines = [f"| {head} | setting | bits per byte, test | least to most | against the first | seconds a step |", "|---|---|--:|--:|--:|--:|"]  # fmt: skip
    for name, (about, results) in rows.items():
        found = [each["test"] for each in results]
        if None in found:
            lines.append(f"| {name} | {about} | {found.count(None)} of {len(found)} diverged | | | |")
            continue
        against = ""
        if results is not default and all(each["test"] is not None for each in default):
            mean, wide = interval([mine - theirs["test"] for mine, theirs in zip(found, default, strict=True)])
            against = f"{mean:+.4f} ± {wide:.4f}" if len(found) > 1 else f"{mean:+.4f}"
        seconds = statistics.median(each["seconds_per_step"] for each in results)
        lines.append(f"| {name} | {about} | {statistics.mean(found):.4f} | {min(found):.4f} to {max(found):.4f} | {against} | {seconds:.3f} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def plot(rows, title):
    """SVG: validation bits per byte on the way, mean over the seeds, with the least and the most."""
    from danlu.stages.plots import Series, line_plot

    best = min(last(result) for _, results in rows.values() for result in results)
    series = []
    for name, (_, results) in rows.items():
        curves = [dict(map(tuple, result["curve"])) for result in results if result["curve"]]
        shares = sorted(set.intersection(*map(set, curves))) if curves else []
        points = [(100 * share, [curve[share] for curve in curves]) for share in shares]
        points = [(x, ys) for x, ys in points if statistics.mean(ys) < 2 * best]  # else one bad line would flatten all
        xs, ys = [x for x, _ in points], [statistics.mean(ys) for _, ys in points]
        series.append(Series(name, xs, ys, "dots", len(series), [(min(ys), max(ys)) for _, ys in points]))
    figure = line_plot(title, series, across="% of the training", wide=True)
    wide, high, left, top = 640, 320, 60, 36
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + wide + 190} {top + high + 48}" font-family="sans-serif" font-size="13" role="img">',
        f'<title>{html.escape(figure["said"])}</title><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="20" font-weight="bold">{html.escape(title)}</text>',
        f'<g transform="translate({left} {top}) scale({wide / 1000} {high / 1000})" fill="none" stroke-linecap="round">',
    ]
    for look, path in figure["shapes"]:
        colour = COLOURS[int(look[1])] if look[0] == "c" else "#ddd"
        width = 7 if look.endswith("dot") else 2 if "stroke" in look else 1
        lines.append(f'<path d="{path}" stroke="{colour}" stroke-width="{width}" vector-effect="non-scaling-stroke"/>')
    lines.append("</g>")
    lines += [f'<text x="{left - 8}" y="{top + y * high / 100 + 4:.0f}" text-anchor="end">{said}</text>' for y, said in figure["ys"]]  # fmt: skip
    lines += [f'<text x="{left + x * wide / 100:.0f}" y="{top + high + 18}" text-anchor="middle">{said}</text>' for x, said in figure["xs"]]  # fmt: skip
    lines.append(f'<text x="{left + wide / 2}" y="{top + high + 40}" text-anchor="middle">{figure["across"]}</text>')
    lines += [
        f'<text x="{left + wide + 16}" y="{top + 16 + 20 * place}" fill="{COLOURS[place]}">● {html.escape(one.name)}</text>'
        for place, one in enumerate(series)
    ]
    return "\n".join([*lines, "</svg>\n"])


def main(arguments):
    keys = keys_of(
        arguments, __doc__, minutes=5.0, steps=0, equal="tokens", seeds=3, rates=4, only="optimizer,embeddings,schedule,initialise",
        depth=4, vocabulary=4096, context=256, batch=16,
    )  # fmt: skip
    parts = keys["only"].split(",")
    if keys["equal"] not in ("tokens", "minutes") or not 1 <= keys["rates"] <= 4 or {*parts} - {"optimizer", *PARTS}:
        raise SystemExit(__doc__)
    out = Path(keys["out"]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    files = texts(keys["data"], out)
    base = {
        "data": files["train"], "validation": files["validation"], "near": 0, "depth": keys["depth"],
        "tokenizer": tokenizer(files, keys["vocabulary"], out), "max_tokens": keys["context"], "batch_size": keys["batch"],
    }  # fmt: skip
    kept, hours = Kept(out / "results.jsonl"), keys["minutes"] / 60
    if keys["equal"] == "minutes":
        length = {"hours": hours}
    else:

        def planned(_):
            found = danlu("plan", "gpt", "--json", hours=hours, test_share=0, **base)
            return json.loads(found[found.index("{\n") :])["plan"]["steps"]

        shape = {key: keys[key] for key in ("minutes", "depth", "vocabulary", "context", "batch")}
        length = {"steps": keys["steps"] or kept({"planned": "steps", **shape}, planned)}
    print(f"all trainings have equal {keys['equal']}: {length}")
    base |= length | {"test": files["test"], "baselines": "false"}

    def results(settings, seeds):
        """One training for each seed."""
        found = []
        for seed in seeds:
            asked = {**base, **settings, "seed": seed}
            job = {key: str(each) for key, each in asked.items() if not isinstance(each, Path)}
            job["vocabulary"] = str(keys["vocabulary"])

            def train(name, asked=asked, said=settings | {"seed": seed}):
                print(f"training {said}", flush=True)
                return trained(out / f"run-{name}", asked)

            found.append(kept(job, train))
        return found

    seeds = range(1, 1 + keys["seeds"])  # 0 is that of the search
    for part in parts:
        rows = {}
        for name, choice in (OPTIMIZERS if part == "optimizer" else PARTS[part]).items():
            if part != "optimizer":
                if "embeddings" in choice:
                    default = 1e-2 * min(1.0, 4 / keys["depth"])
                    choice = {"learning_rates": f"embeddings={choice['embeddings'] * default:g}"}
                rows[name] = ("", results(choice, seeds))
                continue
            settings, rates = choice[0], choice[1][: keys["rates"]]

            def at(rate, settings=settings):  # what a gpt has with Muon, all have
                return settings | {
                    "learning_rate": rate,
                    "learning_rates": f"embeddings={10 * rate:g}",
                    "initialise": "zero_residual",
                }

            best = min(rates, key=lambda rate: last(results(at(rate), [0])[0]))
            edge = ", at the edge of those tried" if len(rates) > 1 and best in (min(rates), max(rates)) else ""
            rows[name] = (f"{best:g}{edge}", results(at(best), seeds))
        (out / f"{part}.md").write_text(table(rows, part), encoding="utf-8")
        (out / f"{part}.svg").write_text(plot(rows, f"{part}: bits per byte of held-out text"), encoding="utf-8")
        print(f"\n{table(rows, part)}\n{out / part}.svg", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
