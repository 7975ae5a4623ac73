"""Word vectors: read from every form that other tools write, broken files named by their line, matched to a tokenizer's tokens."""

import gzip
import pickle
import subprocess
import sys

import numpy as np
import pytest
from tests.stages.conftest import EXAMPLES, rows_of

from danlu.core.errors import UserError
from danlu.data.vectors import FILE, KINDS, Vectors, learn, load, neighbours, of_tokens, words_of, write
from danlu.data.vocabulary import learn as learn_tokenizer


WORDS = ("the", "of", ". . .", "naïve", "中文")
MATRIX = np.array([[0.5, -1e-8, 3], [1, 2, 3], [0.1, 0.2, 0.3], [-1, 0, 1e20], [7, 8, 9]], np.float32)
LINES = [f"{word} {' '.join(map(str, row))}" for word, row in zip(WORDS, MATRIX, strict=True)]
TEXT = "".join(f"{line}\n" for line in LINES)
BINARY = b"".join(f"{word.replace(' ', '')} ".encode() + row.tobytes() for word, row in zip(WORDS, MATRIX, strict=True))
"""Without a space in a word, which no tool can write in this form."""


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("glove.3d.txt", TEXT.encode(), "GloVe text"),
        ("glove.txt", TEXT.rstrip("\n").encode(), "GloVe text"),
        ("w2v.txt", f"5 3\n{TEXT}".encode(), "word2vec text"),
        ("cc.vec", "5 3\n{}".format("".join(f"{line} \n" for line in LINES)).encode(), "word2vec text"),  # as fastText
        ("w2v.txt.gz", gzip.compress(f"5 3\n{TEXT}".encode(), mtime=0), "word2vec text"),
        ("google.bin", b"5 3\n" + BINARY, "word2vec binary"),
        ("google.bin.gz", gzip.compress(b"5 3\n" + BINARY, mtime=0), "word2vec binary"),
        ("c.bin", b"5 3\n" + b"".join(BINARY[i:j] + b"\n" for i, j in zip([0, 16, 31, 47, 66], [16, 31, 47, 66, 85], strict=True)), "word2vec binary"),
    ],
)  # fmt: skip
def test_every_form_gives_the_same_vectors(tmp_path, name, content, form):
    (tmp_path / name).write_bytes(content)
    found = load(tmp_path / name)
    assert found.words == tuple(word.replace(" ", "") if "binary" in form else word for word in WORDS)
    np.testing.assert_array_equal(found.matrix, MATRIX)
    assert (found.name, found.format) == (name, form)


def test_gensim_and_this_read_what_the_other_wrote(tmp_path):
    from gensim.models import KeyedVectors

    words = tuple(word.replace(" ", "") for word in WORDS)
    (tmp_path / "mine").mkdir()
    write(Vectors(words, MATRIX), tmp_path / "mine" / FILE)
    theirs = KeyedVectors.load_word2vec_format(tmp_path / "mine" / FILE)
    assert (tuple(theirs.index_to_key), theirs.vectors.tolist()) == (words, MATRIX.tolist())
    for binary in (True, False):
        theirs.save_word2vec_format(tmp_path / "theirs", binary=binary)
        mine = load(tmp_path / "theirs")
        assert mine.words == words
        np.testing.assert_array_equal(mine.matrix, MATRIX)
    np.testing.assert_array_equal(load(tmp_path / "mine").matrix, MATRIX)


class Runs:
    def __reduce__(self):
        return print, ("it ran",)


@pytest.mark.parametrize(
    ("content", "message", "fix"),
    [
        (f"5 3\n{TEXT}".replace("7.0 8.0", "7.0").encode(), "vectors:6: found 2 numbers, expected a word and 3", "mend"),
        (TEXT.replace("1.0 2.0", "1.0 two").encode(), "vectors:2: could not convert string to float: 'two'", "mend"),
        (TEXT.replace("1.0 2.0", "1.0 nan").encode(), "vectors:2: the vector of 'of' has a number that is not finite", "mend"),
        (f"5 3\n{TEXT}".replace("1.0 2.0", "1.0 inf").encode(), "vectors:3: the vector of 'of'", "mend"),
        (f"6 3\n{TEXT}".encode(), "its first line says 6 words, found 5", "again"),
        (b"5 3\n" + BINARY[:-1], "its first line says 5 words, found 4", "again"),
        (gzip.compress(f"5 3\n{TEXT}".encode(), mtime=0)[:-9], "cannot be read", "again"),
        (b"", "vectors:1: found b''", "word vectors"),
        (b"Once upon a time\n", "vectors:1: could not convert string to float: 'upon'", "mend"),
        (b"one\n", "vectors:1: found b'one", "word vectors"),
        (b"1" * 5000 + b" 3\n" + TEXT.encode(), "vectors:1: found b'1111", "word vectors"),
        (b"5 " + b"1" * 30 + b"\n" + TEXT.encode(), "vectors:1: found b'5 1111", "word vectors"),
        (pickle.dumps(Runs()), "a pickle", "save_word2vec_format"),
        (b"PK\x03\x04 glove.6B.50d.txt", "a zip archive", "unpack"),
        (b"\xba\x16\x4f\x2f\x0c\0\0\0", "a model of fastText (.bin)", ".vec"),
    ],
    ids=range(15),
)  # fmt: skip
def test_what_is_broken_or_foreign_is_named_with_the_way_out(tmp_path, capsys, content, message, fix):
    (tmp_path / "vectors").write_bytes(content)
    with pytest.raises(UserError) as error:
        load(tmp_path / "vectors")
    assert message in error.value.message
    assert fix in error.value.fix
    assert "it ran" not in capsys.readouterr().out


def test_a_word_that_is_there_twice_counts_once_and_that_is_said(tmp_path):
    (tmp_path / "v.txt").write_text("a 1 2\nb 3 4\na 5 6\n")
    found = load(tmp_path / "v.txt")
    assert (found.words, found.matrix.tolist()) == (("a", "b"), [[1, 2], [3, 4]])
    assert found.format.endswith("left out: 1 words that are there twice")


def test_words_are_those_of_the_repository():
    text = "The X-11 server, Ｗörld हिन्दी 我爱北京"
    assert list(words_of([text])) == [["the", "x", "11", "server", "wörld", "हिन्दी", *"我爱北京"]]
    assert next(words_of([text], "jieba"))[-3:] == ["我", "爱", "北京"]


LEARN = """
import json, sys
from danlu.data.vectors import learn, words_of
texts = [json.loads(line)["text"] for line in open(sys.argv[1], encoding="utf-8")][:300]
for kind in ("word2vec", "fasttext"):
    found, counts = learn(list(words_of(texts)), kind=kind, width=16, window=5, min_count=3, epochs=2, seed=int(sys.argv[2]), say=print)
    print(found.words, found.matrix.tobytes().hex(), counts.tolist())
"""


def test_equal_seeds_give_equal_bits_in_two_processes():
    def learned(seed: int, hashes: str) -> str:
        command = [sys.executable, "-c", LEARN, str(EXAMPLES / "sections.jsonl"), str(seed)]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": hashes}
        ).stdout

    first = learned(0, "1")
    assert first
    assert learned(0, "2") == first
    assert learned(1, "1") != first


def test_what_stands_in_the_same_places_is_near():
    """Words that only ever swap with one another, in a text of nothing else, are each other's nearest."""
    rng = np.random.default_rng(0)
    pairs = [("cat", "dog"), ("red", "blue"), ("run", "jump"), ("tea", "milk")]
    about = [["fur", "paw", "tail"], ["paint", "wall", "brush"], ["legs", "fast", "road"], ["cup", "drink", "hot"]]
    sentences = [
        [*rng.permutation(about[k]), rng.choice(pairs[k]), *rng.permutation(about[k])]
        for k in rng.integers(4, size=2000)
    ]
    sentences = [[str(word) for word in sentence] for sentence in sentences]
    made, counts = learn(sentences, width=16, window=5, min_count=1, epochs=10, seed=0, say=print)
    assert counts.sum() == sum(map(len, sentences))
    for one, other in pairs:
        (nearest,) = neighbours(made, [made.words.index(one)], 4)
        assert other in nearest[:3], (one, nearest)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_a_token_has_the_vector_of_the_word_it_spells(kind):
    tokenizer = learn_tokenizer([row["text"] for row in rows_of("sections.jsonl")], kind=kind, size=2000)
    words = ("package", "the", "Package", "packages", "packaged", "zzqq")
    rng = np.random.default_rng(0)
    vectors = Vectors(words, rng.normal(size=(len(words), 5)).astype(np.float32))
    ids, matrix, spelled = of_tokens(vectors, tokenizer)
    found = dict(zip(ids.tolist(), matrix, strict=True))
    assert len(found) == len(ids) == len(matrix)
    (package,), (the,), (capital,) = (tokenizer.encode(text) for text in (" package", " the", " The"))
    np.testing.assert_array_equal(found[package], vectors.matrix[0])
    np.testing.assert_array_equal(found[the], vectors.matrix[1])
    np.testing.assert_array_equal(found[capital], vectors.matrix[1])  # there is no `The`
    assert {package, the, capital} <= {*ids[:spelled].tolist()}
    begins, *rest = tokenizer.encode(" zzqq")
    if rest:
        np.testing.assert_allclose(found[begins], vectors.matrix[5], rtol=1e-6)
        assert begins in ids[spelled:]
    assert not {*tokenizer.specials.values()} & found.keys()


def test_kinds_are_named():
    with pytest.raises(UserError, match="kind=glove: expected word2vec, fasttext"):
        learn([["a"]], kind="glove", width=4, window=2, min_count=1, epochs=1, seed=0, say=print)
    assert KINDS == ("word2vec", "fasttext")
