"""Word vectors through the command line: learned, looked at, and what a model's embedding starts from."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from tests.stages.conftest import EXAMPLES, lines, rows_of
from tests.stages.test_resume import outcome

from danlu.core.errors import UserError
from danlu.data.vectors import load
from danlu.experiment import ask
from danlu.recipes.catalogue import RECIPES
from danlu.stages.build import build
from danlu.stages.prepare import prepare


SMALL = ("depth=2", "vocabulary=600", "max_tokens=64", "batch_size=8", "precision=float32", "threads=1")
LEARN = ("width=24", "epochs=2")
CHINESE = ["机器学习很有意思。", "我们学习机器翻译。", "北京的冬天很冷。", "他在北京学习。"] * 20


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Real text of 200 documents, and vectors learned from 400 others."""
    from danlu.stages.vectors import vectors

    folder, rows = tmp_path_factory.mktemp("words"), rows_of("sections.jsonl")
    data = lines(folder / "data.jsonl", [{"text": row["text"]} for row in rows[:200]])
    others = lines(folder / "others.jsonl", rows[200:600])
    vectors(str(others), folder / "words", width=24, epochs=2, min_count=2, say=lambda _: None)
    return data, folder / "words"


def test_the_folder_says_what_is_near_and_is_the_same_every_time(danlu, tmp_path):
    for out in ("a/mine", "b/mine"):
        result = danlu("prepare", "vectors", f"data={EXAMPLES / 'games.jsonl'}", f"out={out}", *LEARN)
        assert result.code == 0, result.err
    assert "vectors: b/mine" in result.out and "learning in 2 passes (given)" in result.out
    files = sorted(path.name for path in (tmp_path / "a/mine").iterdir())
    assert files == ["figures.json", "vectors.md", "vectors.txt"]
    for name in files:
        assert (tmp_path / "a/mine" / name).read_bytes() == (tmp_path / "b/mine" / name).read_bytes()
    made, found = load(tmp_path / "a/mine"), json.loads((tmp_path / "a/mine/figures.json").read_text("utf-8"))
    assert made.matrix.shape == (found["words"], 24) and made.words[0] == "the"
    assert made.sha256 == found["sha256"]
    texts = " ".join(row["text"].lower() for row in rows_of("games.jsonl"))
    for each in found["nearest"]:
        at = made.words.index(each["word"])
        cosine = made.matrix @ made.matrix[at] / np.linalg.norm(made.matrix, axis=1)
        others = [made.words[place] for place in (-cosine).argsort() if place != at]
        assert each["nearest"] == others[:6] and each["word"] in texts
        assert (
            f"| {each['word']} | {each['count']:,} | {', '.join(others[:6])} |"
            in (tmp_path / "a/mine/vectors.md").read_text()
        )


@pytest.mark.parametrize("kind", ["word2vec", "fasttext"])
def test_chinese_words(danlu, tmp_path, kind):
    lines(tmp_path / "zh.jsonl", [{"text": text} for text in CHINESE])
    result = danlu("prepare", "vectors", "data=zh.jsonl", "out=zh", f"kind={kind}", "segment=jieba", *LEARN)
    assert result.code == 0, result.err
    assert {"学习", "机器", "北京"} <= set(load(tmp_path / "zh").words)
    danlu("prepare", "vectors", "data=zh.jsonl", "out=characters", f"kind={kind}", *LEARN)
    assert {"学", "习", "京"} <= set(load(tmp_path / "characters").words)


def test_words_of_a_segmented_source_are_kept_to(danlu, tmp_path):
    rows = [{"text": "New York is big.", "words": ["New York", "is", "big", "."]}] * 6
    result = danlu(
        "prepare", "vectors", f"data={lines(tmp_path / 's.jsonl', rows)}", "out=mine", "segment=words", *LEARN
    )
    assert result.code == 0, result.err
    assert set(load(tmp_path / "mine").words) == {"new_york", "is", "big"}
    result = danlu("prepare", "vectors", f"data={EXAMPLES / 'games.jsonl'}", "out=more", "segment=words")
    assert result.code == 2 and "games.jsonl:1: column 'words' is missing" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out=there"], "out=there exists"),
        (["out=new", "kind=glove"], "kind=glove: expected word2vec, fasttext"),
        (["out=new", "width=0"], "width=0: expected 1 to 10,000"),
        (["out=new", "segment=yes"], "segment=yes: expected jieba or words"),
        (["out=new", "min_count=9999"], "0 words occur 9999 times"),
        (["out=new", "size=10"], "unknown key 'size'"),
        ([], "out= is missing"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(danlu, tmp_path, arguments, message):
    (tmp_path / "there").mkdir()
    result = danlu("prepare", "vectors", f"data={EXAMPLES / 'games.jsonl'}", *arguments)
    assert result.code == 2
    assert message in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


@pytest.mark.parametrize("recipe", ["gpt", "bert"])
@pytest.mark.parametrize("width", [24, 200])
def test_only_the_tokens_that_have_a_vector_start_from_it(files, tmp_path, recipe, width):
    """Wider than the vectors (128 against 24), their inner products are kept; narrower (128 against 200), as many as fit into it."""
    data, folder = files
    mine = load(folder)
    rng = np.random.default_rng(0)
    matrix = mine.matrix if width == 24 else rng.normal(size=(len(mine.words), width)).astype(np.float32)
    path = tmp_path / "given.txt"
    path.write_text("".join(f"{w} {' '.join(map(str, row))}\n" for w, row in zip(mine.words, matrix, strict=True)))

    def start(**more):
        settings = dict(each.split("=") for each in SMALL) | {"data": str(data), "steps": 1} | more
        prepared = prepare(ask(RECIPES.get, [recipe], settings), say=lambda _: None)
        model = build(prepared, lambda _: None).model
        name = "embed_tokens.weight" if recipe == "gpt" else "word_embeddings.weight"
        weights = {key: each.detach().clone() for key, each in model.named_parameters()}
        return prepared, weights, next(key for key in weights if key.endswith(name))

    (_, without, name), (prepared, with_them, _) = start(), start(vectors=str(path))
    ids, found = map(torch.from_numpy, prepared.vectors)
    assert all(torch.equal(with_them[key], each) for key, each in without.items() if key != name)
    rest = torch.ones(len(without[name]), dtype=torch.bool)
    rest[ids] = False
    assert rest.sum() > 5 and torch.equal(with_them[name][rest], without[name][rest])
    rows, wanted = with_them[name][ids].double(), (found - found.mean(0)).double()
    assert rows.std().item() == pytest.approx(without[name].std().item(), rel=1e-4)
    gram, theirs = rows @ rows.T, wanted @ wanted.T
    if width == 24:
        assert torch.allclose(gram / gram.norm(), theirs / theirs.norm(), atol=1e-6)
    else:  # no matrix of that rank is nearer to theirs (Eckart and Young 1936)
        values = torch.linalg.eigvalsh(theirs).flip(0)
        scale = (gram * theirs).sum() / gram.square().sum()
        assert (scale * gram - theirs).norm().item() == pytest.approx(values[128:].norm().item(), rel=1e-4)
    again, other = start(vectors=str(path))[1], start(vectors=str(path), seed=1)[1]
    assert torch.equal(again[name], with_them[name]) and not torch.equal(other[name][ids], with_them[name][ids])


def test_a_run_says_what_they_were_worth_and_resumes_exactly(files, danlu, tmp_path):
    data, folder = files
    vectors = shutil.copytree(folder, tmp_path / "words")
    words = (
        "pretrain",
        "gpt",
        f"data={data}",
        *SMALL,
        f"vectors={vectors}",
        "steps=12",
        "validate_every=4",
        "gain_seeds=2",
    )
    result = danlu(*words, "out=whole")
    assert result.code == 0, result.err
    run = tmp_path / "whole"
    found = json.loads((run / "evaluation.json").read_text())["vectors"]
    assert (found["seeds"], found["metric"]) == (2, "bits per byte")
    sides = [found[side]["value"] for side in ("vectors", "random")]
    assert found["difference"]["value"] == pytest.approx(sides[0] - sides[1])
    assert found["difference"]["low"] <= found["difference"]["value"] <= found["difference"]["high"]
    assert found["verdict"] in result.out and found["verdict"][1:] in (run / "report.html").read_text("utf-8")
    assert "tokens" in result.out and "spell a word" in result.out
    (source,) = (
        each for each in json.loads((run / "run.json").read_text())["lineage"]["data"] if each["role"] == "vectors"
    )
    assert source["sha256"] == load(vectors).sha256

    cut = shutil.copytree(run, tmp_path / "cut")
    shutil.rmtree(max((cut / "checkpoints").glob("step-*")))
    for name in ("final.json", "evaluation.json"):
        (cut / name).unlink()
    facts = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    resumed = danlu("resume", "cut")
    assert resumed.code == 0 and "going on from step" in resumed.out, resumed.err
    assert outcome(cut) == outcome(run)

    (cut / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    text = (vectors / "vectors.txt").read_text("utf-8")
    (vectors / "vectors.txt").write_text(text.replace(" 0.", " 0.1", 1), "utf-8")
    result = danlu("resume", "cut")
    assert result.code == 2 and "vectors.txt has changed since the run began" in result.err


def test_vectors_of_the_same_rows_are_warned_of(danlu, files, tmp_path):
    data, _ = files
    assert danlu("prepare", "vectors", f"data={data}", "out=own", *LEARN).code == 0
    result = danlu("preflight", "bert", f"data={data}", *SMALL, "steps=1", "vectors=own")
    assert "warning: own was learned from all of data.jsonl, held-out rows included" in result.out, result.err
    result = danlu(
        "preflight", "bert", f"data={data}", f"test={EXAMPLES / 'games.jsonl'}", *SMALL, "steps=1", "vectors=own"
    )
    assert result.code == 0 and "own was learned from" not in result.out, result.err
    figures = tmp_path / "own/figures.json"
    found = json.loads(figures.read_text("utf-8"))
    origin, found["data"]["sha256"] = found["data"]["sha256"], "0" * 64
    for content in (json.dumps({**found, "nearest": [{"word": origin}]}), "[]", "{"):
        figures.write_text(content, "utf-8")
        result = danlu("preflight", "bert", f"data={data}", *SMALL, "steps=1", "vectors=own")
        assert result.code == 0 and "own was learned from" not in result.out, result.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([*SMALL, "vectors=nothing"], "vectors=nothing: no such file"),
        ([*SMALL, "gain_seeds=2"], "starts from random weights"),
        ([*SMALL, "gain_seeds=1", "vectors=nothing"], "one seed has no interval"),
        ([*SMALL, "vectors=greek.txt"], "vectors=greek.txt: 0 of 600 tokens spell one of its 2 words"),
        (["vectors=nothing", "model=minilm"], "vectors= describes random weights, but minilm has weights"),
    ],
)
def test_vectors_that_cannot_be_used_are_an_error(danlu, files, tmp_path, more, message):
    (tmp_path / "greek.txt").write_text("καλημέρα 1 2\nκόσμε 3 4\n", "utf-8")
    result = danlu("preflight", "bert", f"data={files[0]}", "steps=1", *more)
    assert result.code == 2
    assert message in result.err


def test_a_pickle_is_refused_with_the_way_out(tmp_path):
    """gensim's own files are pickles: reading one would run it."""
    from gensim.models import KeyedVectors

    theirs = KeyedVectors(2)
    theirs.add_vectors(["a", "b"], np.eye(2, dtype=np.float32))
    theirs.save(str(tmp_path / "theirs.model"))
    with pytest.raises(UserError, match="a pickle, such as gensim's own") as error:
        load(tmp_path / "theirs.model")
    theirs = KeyedVectors.load(str(tmp_path / "theirs.model"))
    theirs.save_word2vec_format(tmp_path / "vectors.txt")
    assert 'KeyedVectors.load(FILE).save_word2vec_format("vectors.txt")' in error.value.fix
    assert load(tmp_path / "vectors.txt").words == ("a", "b")
