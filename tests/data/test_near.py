"""Near duplicates: found as the exact similarity has it, the same in memory, on disk and for any cut."""

import json
import math
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from benchmarks.near_duplicates import edited, measured

from danlu.data import near
from danlu.data.shingles import jaccard, shingles


ROOT = Path(__file__).parents[2]
ENGLISH = [json.loads(line)["text"] for line in (ROOT / "examples/data/sections.jsonl").read_text("utf-8").splitlines()]
CHINESE = [
    line
    for page in sorted((ROOT / "docs/zh").rglob("*.md"))
    for line in page.read_text("utf-8").splitlines()
    if len(line) > 50 and any("一" <= character <= "鿿" for character in line)
]


@pytest.fixture(scope="module")
def mixed():
    """800 real texts, among them exact copies, near ones and such without a word."""
    draw = random.Random(0)
    texts = [*ENGLISH[:300], *CHINESE[:100], "", "…", "…", "one", "One!"]
    texts += [texts[draw.randrange(400)] for _ in range(200)]
    texts += [edited(texts[draw.randrange(400)], 0.02, ["alpha", "炉"], draw) for _ in range(195)]
    draw.shuffle(texts)
    return texts


@pytest.mark.parametrize("texts", [ENGLISH[:600], CHINESE[:600]], ids=["English", "Chinese"])
def test_planted_copies_are_found_as_their_exact_similarity_has_it(texts):
    rows = {row["rate"]: row for row in measured(texts, copies=300)}
    assert rows[0.0]["recall"] == 1 and rows[0.0]["alike"] > 290
    similar = [rows[rate]["similarity"] for rate in sorted(rows)]
    assert similar == sorted(similar, reverse=True) and similar[-1] < 0.2
    alike = sum(row["alike"] for row in rows.values() if row["rate"])
    assert (
        sum(row["alike"] * row["recall"] for row in rows.values() if row["rate"] and row["alike"]) > 0.9 * alike > 150
    )
    assert all(row["precision"] is None or row["precision"] > 0.95 for row in rows.values())
    assert (
        sum(row["joined"] for row in rows.values()) < 0.1 * alike
    )  # below the threshold by less than the estimate errs


def test_the_estimate_errs_as_its_formula_says():
    draw = random.Random(1)
    copies = [edited(text, 0.05, ["alpha", "beta"], draw) for text in ENGLISH]
    exact = np.array([jaccard(*pair) for pair in zip(shingles(ENGLISH, 5), shingles(copies, 5), strict=True)])
    estimated = (near.signatures(ENGLISH) == near.signatures(copies)).mean(axis=1)
    expected = math.sqrt(float((exact * (1 - exact)).mean()) / near.PERMUTATIONS)
    assert abs(float((estimated - exact).mean())) < 0.004
    assert 0.8 * expected < math.sqrt(float(((estimated - exact) ** 2).mean())) < 1.2 * expected


def test_signatures_stay_what_they_are():
    assert near.signatures(["the furnace burns for a long night"], 4).tolist() == [
        [713683582, 1236495388, 448882037, 2309791063]
    ]


def test_curve_and_bands():
    cut, rows = near.bands(0.8)
    assert cut * rows <= near.PERMUTATIONS
    shares = near.curve(cut, rows)
    assert list(shares) == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0] and shares[1.0] == 1
    assert shares[0.8] == pytest.approx(1 - (1 - 0.8**rows) ** cut) and shares[0.8] > 0.9 > 0.1 > shares[0.5]
    assert near.bands(0.9)[1] > rows > near.bands(0.5)[1]


def test_a_band_is_shared_as_often_as_the_curve_says():
    draw = random.Random(2)
    copies = [edited(text, 0.03, ["alpha", "beta"], draw) for text in ENGLISH]
    signatures = near.signatures(ENGLISH), near.signatures(copies)
    exact = np.array([jaccard(*pair) for pair in zip(shingles(ENGLISH, 5), shingles(copies, 5), strict=True)])
    cut, rows = near.bands()
    one, two = (near.band_hashes(each, cut, rows) for each in signatures)
    assert one.shape == (cut, len(ENGLISH)) and one.dtype == np.uint64
    expected = 1 - (1 - exact**rows) ** cut
    assert (one == two).any(axis=0).mean() == pytest.approx(expected.mean(), abs=0.03)


@pytest.mark.parametrize(("sizes", "partition"), [((800,), 10**6), ((800,), 37), ((1, 0, 399, 17, 383), 100)])
def test_files_say_what_memory_says_for_any_cut(mixed, tmp_path, sizes, partition):
    assert sum(sizes) == len(mixed)
    stems, at = [], 0
    for number, size in enumerate(sizes):
        stems.append(tmp_path / f"{number}")
        near.write(stems[-1], mixed[at : at + size])
        at += size
    first, exact = near.repeats(stems, tmp_path / "all", partition=partition)
    own, roots = np.arange(len(mixed)), near.clusters(mixed)
    assert np.array_equal(np.where(first < 0, own, first), roots)
    assert (roots <= own).all() and np.array_equal(roots[roots], roots)
    seen: set[str] = set()
    keys = [near.normal_form(text) for text in mixed]
    assert exact.tolist() == [key in seen or bool(seen.add(key)) for key in keys]
    assert 0 < exact.sum() < (first >= 0).sum() and (first[exact] >= 0).all()
    assert sorted(path.name for path in tmp_path.glob("all.*")) == ["all.exact.npy", "all.first.npy"]


def test_exact_copies_only(mixed, tmp_path):
    near.write(tmp_path / "one", mixed[:500], None)
    near.write(tmp_path / "two", mixed[500:], None)
    first, exact = near.repeats([tmp_path / "one", tmp_path / "two"], tmp_path / "all", None)
    keys = [near.normal_form(text) for text in mixed]
    assert first.tolist() == [each if (each := keys.index(key)) < place else -1 for place, key in enumerate(keys)]
    assert np.array_equal(first >= 0, exact)
    assert np.array_equal(near.keys(tmp_path / "one")[0], near.chunk(mixed[:1]).keys()[0])
    assert sum(path.stat().st_size for path in tmp_path.glob("one.*")) < 500 * (8 + 16) + 500  # no signatures


def test_texts_without_words_are_no_near_duplicates():
    assert near.clusters(["…", "!!!", "", "… ", "word", "WORD?", ""]).tolist() == [0, 1, 2, 0, 4, 4, 2]


def test_what_is_alike_through_another_is_one_cluster():
    words = [f"w{number}" for number in range(120)]
    texts = [
        " ".join(words[at : at + 100]) for at in (16, 0, 8)
    ]  # neighbours share 92 words of 108, the ends 84 of 116
    one, two, three = shingles(texts, 5)
    assert jaccard(one, two) < near.THRESHOLD < min(jaccard(one, three), jaccard(two, three))
    assert near.clusters(texts).tolist() == [0, 0, 0]


def test_a_lower_threshold_finds_more():
    draw = random.Random(3)
    copies = [edited(text, 0.05, ["alpha", "beta"], draw) for text in ENGLISH[:300]]
    found = [int((near.clusters([*ENGLISH[:300], *copies], each)[300:] < 300).sum()) for each in (0.5, 0.7, 0.9)]
    assert found[0] > 1.5 * found[1] > 1.5 * found[2]


def test_nothing_is_nothing(tmp_path):
    assert near.clusters([]).tolist() == [] and near.clusters(["only one"]).tolist() == [0]
    near.write(tmp_path / "none", [])
    first, exact = near.repeats([tmp_path / "none"], tmp_path / "all")
    assert first.shape == exact.shape == (0,)


def test_memory_does_not_grow_with_the_documents(tmp_path):
    draw = np.random.default_rng(0)
    words = np.array([f"w{number}" for number in range(5000)])
    stems = []
    for number in range(10):
        texts = [" ".join(row) for row in words[draw.integers(0, len(words), (1000, 12))]]
        near.write(tmp_path / f"{number}", [*texts[:800], *(f"{text} w1 w2" for text in texts[:200])])
        stems.append(tmp_path / f"{number}")
    peaks = []
    for count in (2, 10):
        tracemalloc.start()
        near.repeats(stems[:count], tmp_path / "all", partition=1000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
