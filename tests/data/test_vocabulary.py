"""Tokenizers learned from real text: what they promise about any text, their bytes, their sizes, and the words they keep to."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jieba
import pytest
import tokenizers

from danlu.core.errors import UserError
from danlu.data.tokenizer import Tokenizer
from danlu.data.vocabulary import BORDER, PIECE, learn, pieces, segmented, survey, usual_size


ROOT = Path(__file__).parents[2]
ENGLISH = [json.loads(line)["text"] for line in (ROOT / "examples/data/sections.jsonl").read_text("utf-8").splitlines()]
CHINESE = [
    block for path in sorted((ROOT / "docs/zh").rglob("*.md")) for block in path.read_text("utf-8").split("\n\n")
]
TEXTS = ENGLISH[:600] + CHINESE[:300]
HARD = [
    "Hello, world!  two  spaces\n\n\tand a tab \r\n",
    "  naïve café, e\u0301, Ångström ﬁ",
    "中文，全角：ＡＢＣ「引号」龘",
    "def f(x):\n    return x ** 2  # ok",
    "😀👩‍👩‍👧 \U0001d54f \x00\x1f \ufeff نص हिन्दी",
    "1234567890 3.14",
]


@pytest.fixture(scope="module")
def learned():
    return {kind: learn(TEXTS, kind=kind, size=3000) for kind in ("bpe", "wordpiece", "unigram")}


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_every_text_comes_back_exactly_and_nothing_is_unknown(learned, kind):
    tokenizer = learned[kind]
    assert tokenizer.size == 3000
    for text in [*HARD, *ENGLISH[600:700], *CHINESE[300:]]:
        expected = text.replace("▁", " ") if kind == "unigram" else text  # its own mark for a space
        assert tokenizer.decode(tokenizer.encode(text)) == expected
    assert tokenizer.unknown is None
    assert survey(tokenizer, HARD)["unknown_share"] == 0


def test_white_space_of_ten_megabytes_is_read(learned):
    long = " " * 11_000_000 + "x"
    assert [end - start for _, (start, end) in learned["bpe"].rust.pre_tokenizer[0].pre_tokenize_str(long)] == [
        10_999_999,
        2,
    ]


def test_numbers_are_digits_and_no_token_crosses_from_a_word_to_a_number_or_a_line(learned):
    tokenizer = learned["bpe"]
    assert [tokenizer.decode([token]) for token in tokenizer.encode("2024")] == list("2024")
    for token in range(3, tokenizer.size):
        text = tokenizer.decode([token])
        assert not re.search(r"\d.|[a-z]\s", text), text


def test_a_decoders_tokenizer_begins_documents_and_chats(learned):
    tokenizer = learned["bpe"]
    begin, start, end = (tokenizer.specials[name] for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    assert (begin, start, end) == (0, 1, 2)
    assert tokenizer.encode("a", special=True) == [begin, *tokenizer.encode("a")]
    said = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]
    assert tokenizer.render(said) == "<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"
    assert tokenizer.render(said[:1], generation_prompt=True).endswith("<|im_start|>assistant\n")
    assert tokenizer.ends == {begin, end}
    assert not learn(TEXTS[:50], size=400, template=False).has_template


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_an_encoders_tokenizer_has_berts_special_tokens(kind):
    tokenizer = learn(TEXTS, kind=kind, size=3000, specials="encoder")
    assert [tokenizer.rust.id_to_token(token) for token in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.encode("a [MASK] b", special=True)[:1] == [2]
    assert tokenizer.encode("a [MASK] b", special=True)[-1] == 3
    assert 4 in tokenizer.encode("a [MASK] b")
    assert not tokenizer.has_template


def test_wordpiece_is_berts(learned):
    tokens = learned["wordpiece"].rust.encode("Ångström: 中文模型 龘", add_special_tokens=False).tokens
    assert tokens[-1] == "[UNK]"
    assert [token for token in tokens if token in "中文模型"] == list("中文模型")
    assert "".join(token.removeprefix("##") for token in tokens).startswith("[UNK]:")  # Å is in no text learned from
    lower = learn(TEXTS, kind="wordpiece", size=3000, lowercase=True)
    assert lower.decode(lower.encode("Ångström The")) == "angstrom the"


SCRIPT = """
import hashlib, json, sys
from danlu.data.vocabulary import learn
texts = json.load(sys.stdin)
for kind in ("bpe", "wordpiece", "unigram"):
    print(hashlib.sha256(learn(texts, kind=kind, size=2500).rust.to_str().encode()).hexdigest())
"""


def test_the_same_texts_give_the_same_bytes_in_every_process():
    texts = ENGLISH[:300] + CHINESE[:100]
    own = [
        hashlib.sha256(learn(texts, kind=kind, size=2500).rust.to_str().encode()).hexdigest()
        for kind in ("bpe", "wordpiece", "unigram")
    ]
    for threads in ("1", "3"):
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            input=json.dumps(texts),
            env={**os.environ, "RAYON_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout.split() == own


def test_with_jieba_no_token_crosses_two_words_and_the_file_needs_no_jieba(tmp_path):
    words = {word for text in CHINESE for word in jieba.lcut(text)}
    tokenizer = learn(CHINESE, size=3000, segment="jieba")

    def crossing(tokenizer):
        every = (tokenizer.decode([token]) for token in range(3, tokenizer.size))
        chinese = [text for text in every if re.fullmatch("[\u4e00-\u9fff]{2,}", text)]
        assert len(chinese) > 100
        return [text for text in chinese if not any(text in word for word in words)]

    assert crossing(tokenizer) == []
    assert len(crossing(learn(CHINESE, size=3000))) > 100
    tokenizer.save(tmp_path)
    code = "import sys, tokenizers; t = tokenizers.Tokenizer.from_file(sys.argv[1]); print(t.encode(sys.argv[2], add_special_tokens=False).ids); assert 'jieba' not in sys.modules"
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "tokenizer.json", CHINESE[20]],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ran.stdout) == tokenizer.encode(CHINESE[20])


def test_words_given_with_borders_are_kept_to():
    text = "ab" + BORDER + "cd"
    apart = learn([text] * 50, size=262)
    assert {"ab", "cd"} <= set(apart.rust.get_vocab())
    assert "abcd" not in learn([text] * 50, size=300, say=lambda _: None).rust.get_vocab()
    assert "abcd" in learn([text.replace(BORDER, "")] * 50, size=300, say=lambda _: None).rust.get_vocab()


def test_segmenting_changes_nothing_but_the_borders():
    for text, cut in zip(CHINESE, segmented(CHINESE), strict=True):
        assert cut.replace(BORDER, "") == text


def test_texts_too_short_for_the_size_give_fewer_tokens_and_it_is_said():
    said = []
    tokenizer = learn(["one two one two"], size=5000, say=said.append)
    assert tokenizer.size < 300
    assert said == [f"asked for 5,000 tokens, made {tokenizer.size}: nothing else stands in the texts often enough"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 258}, "size=258: expected at least 259"),
        ({"size": 100, "kind": "wordpiece"}, "size=100: expected at least"),
        ({"size": 300, "kind": "unigram"}, "size=300: expected at least"),
        ({"size": 3000, "kind": "bpee"}, "kind=bpee"),
        ({"size": 3000, "specials": "both"}, "specials=both"),
        ({"size": 3000, "kind": "wordpiece", "specials": "decoder"}, "loses white space"),
        ({"size": 3000, "lowercase": True}, "keeps a text as it is"),
        ({"size": 3000, "segment": "spaces"}, "segment=spaces: expected jieba"),
        ({"size": 3000, "segment": "jieba", "kind": "unigram"}, "segment=jieba: kind=unigram"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        learn(TEXTS[:100] + CHINESE[:50], **settings)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_the_least_size_named_is_one_that_works(kind):
    with pytest.raises(UserError) as error:
        learn(TEXTS, kind=kind, size=300)
    least = int(re.search(r"at least ([\d,]+)", error.value.message)[1].replace(",", ""))
    assert learn(TEXTS, kind=kind, size=least).size == least
    with pytest.raises(UserError):
        learn(TEXTS, kind=kind, size=least - 1)


@pytest.mark.parametrize("texts", [[], ["", " \n"]])
def test_no_text_is_refused(texts):
    with pytest.raises(UserError, match="no text"):
        learn(texts, size=1000)


def test_a_line_of_ten_megabytes_is_cut_before_white_space():
    long = " ".join(ENGLISH) * 25
    assert len(long) > 1e7
    cut = list(pieces(["short", long, "x" * 25_000]))
    assert "".join(cut) == "short" + long + "x" * 25_000
    assert max(map(len, cut)) <= PIECE
    assert all(piece[0].isspace() for piece in cut[2:] if "x" * 100 not in piece)


def test_a_survey_counts_what_is_there():
    rust = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "a": 1, "b": 2, "中": 3}, unk_token="?"))
    rust.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    found = survey(Tokenizer(rust, {"unk_token": "?"}), ["a b", "a  é", "中 中", ""])
    assert (found["texts"], found["bytes"], found["characters"], found["tokens"]) == (3, 3 + 5 + 7, 10, 6)
    assert found["vocabulary"] == 4
    assert found["unknown_share"] == 1 / 6
    assert found["exact_share"] == 2 / 3
    assert found["used_share"] == 1
    assert found["scripts"]["Latin"]["tokens"] == 4
    assert found["scripts"]["Han"]["bytes_per_token"] == 7 / 2
    assert "scripts" not in survey(Tokenizer(rust, {"unk_token": "?"}), ["a", "b"])


def test_the_usual_size_grows_with_the_square_root_of_the_text():
    assert [usual_size(size) for size in (0, 10_000, 10**6, 16 * 10**6, 10**12)] == [1024, 1024, 4096, 16384, 32768]
