"""How well near duplicates are found: copies with changed words, planted among the texts of a file, against the exact Jaccard similarity.

python benchmarks/near_duplicates.py FILE.jsonl [column]
"""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from danlu.data import near
from danlu.data.shingles import jaccard, shingles
from danlu.data.source import read


RATES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3)
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


def edited(text: str, rate: float, words: Sequence[str], draw: random.Random) -> str:
    """The text with so many of its words (of Chinese: characters) replaced by others."""
    return WORD.sub(lambda found: draw.choice(words) if draw.random() < rate else found[0], text)


def measured(texts: Sequence[str], copies: int = 1000, seed: int = 0) -> Iterator[dict[str, Any]]:
    """For each rate: copies of so many texts are planted among all of them, and looked for.

    similarity: exact, of copy and original, mean. alike: copies at or above the threshold; recall: of these, the share found (in one
    cluster with the original). joined: copies below the threshold in one cluster with the original all the same; floor: the exact
    similarity that one in a hundred of all that were found is below. precision: of all texts said to repeat another, the share
    with one in their cluster that is alike by threshold - 0.05 or more, which is over one standard error of the estimate.
    """
    words = [word for text in texts for word in WORD.findall(text)]
    for rate in RATES:
        draw = random.Random(f"{seed} {rate}")
        chosen = sorted(draw.sample(range(len(texts)), min(copies, len(texts))))
        planted = [*texts, *(edited(texts[place], rate, words, draw) for place in chosen)]
        began = time.perf_counter()
        first = near.clusters(planted)
        seconds = time.perf_counter() - began
        sets = list(shingles(planted, near.WORDS))
        pairs = [(place, len(texts) + number) for number, place in enumerate(chosen) if len(sets[place])]
        exact = np.array([jaccard(sets[one], sets[two]) for one, two in pairs])
        found = np.array([first[one] == first[two] for one, two in pairs])
        alike = exact >= near.THRESHOLD
        members: dict[int, list[int]] = {}
        for place, root in enumerate(first.tolist()):
            members.setdefault(root, []).append(place)
        nearest = [
            max(jaccard(sets[place], sets[other]) for other in group if other != place)
            for group in members.values()
            if len(group) > 1
            for place in group
        ]
        yield {
            "rate": rate,
            "similarity": float(exact.mean()),
            "alike": int(alike.sum()),
            "recall": float(found[alike].mean()) if alike.any() else None,
            "joined": int((found & ~alike).sum()),
            "repeats": int((first != np.arange(len(planted))).sum()),
            "precision": float((np.array(nearest) >= near.THRESHOLD - 0.05).mean()) if nearest else None,
            "floor": float(np.percentile(nearest, 1)) if nearest else None,
            "seconds": seconds,
        }


def main() -> None:
    path, column = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "text"
    texts = [str(row.values[column]) for row in read(path).rows]
    cut, rows = near.bands()
    print(f"{len(texts):,} texts; {near.PERMUTATIONS} permutations, {cut} bands of {rows} rows; share a band:", end=" ")
    print(", ".join(f"{share:.3f} at {at:g}" for at, share in near.curve(cut, rows).items()))
    print("edited  similarity  alike  recall  below 0.8 joined  repeats  precision  floor  seconds")
    for row in measured(texts):
        recall, precision, floor = (
            "-" if row[key] is None else f"{row[key]:.3f}" for key in ("recall", "precision", "floor")
        )
        print(
            f"{row['rate']:6.0%}  {row['similarity']:10.3f}  {row['alike']:5}  {recall:>6}  {row['joined']:16}"
            f"  {row['repeats']:7}  {precision:>9}  {floor:>5}  {row['seconds']:7.2f}"
        )


if __name__ == "__main__":
    main()
