"""Bulk gives the ids that the tokenizer gives, for any text: by fastokens, or by looking up segments."""

from __future__ import annotations

import json
import random
import sys
import unicodedata
from itertools import groupby
from operator import itemgetter

import fastokens
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stages.conftest import rows_of
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from danlu.data import segments
from danlu.data.bulk import DIGITS, PATTERNS, PROBE, Bulk, _readable
from danlu.data.segments import Segments, divisible, separable
from danlu.data.vocabulary import learn


TEXTS = [row["text"] for row in rows_of("games.jsonl")[:200]] + [row["text"] for row in rows_of("reviews.jsonl")[:200]]


def byte_level(*before) -> Tokenizer:
    """One that joins any two bytes of a piece, so that its ids tell where pieces begin."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = random.Random(0).sample([(one, two) for one in alphabet for two in alphabet], len(alphabet) ** 2)
    vocabulary = {token: at for at, token in enumerate([*alphabet, *map("".join, pairs)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(before))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def kinds() -> dict[str, Tokenizer]:
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found = {
        f"{name}, split": byte_level(pre_tokenizers.Split(Regex(each), behavior="isolated"), plain)
        for each, name in PATTERNS.items()
    }
    found["GPT-2"] = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    found["SmolLM2"] = byte_level(
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    )
    found["NFC"] = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    found["NFC"].normalizer = normalizers.NFC()
    found["ours"] = learn(TEXTS, size=900).rust
    found["wordpiece"] = learn(TEXTS, kind="wordpiece", size=2500, lowercase=True).rust
    found["unigram"] = learn(TEXTS, kind="unigram", size=2500, say=lambda _: None).rust
    return found


KINDS = kinds()
BULKS = {name: Bulk(rust) for name, rust in KINDS.items()}
PIECES = st.sampled_from(
    ["a", "the", "don't", "'ſ", "ſ", "\u180e", "I'll", "12", "3.5", ".", ",", "...", "!?", "\n", "\n\n", "\t", " ", "  ", "\u3000", "\xa0", "\u2028", "\x1c", "\x85", "é", "e\u0301", "\u0301", "茶", "你好", "🙂", "👩‍🔧",
     "<|endoftext|>", "[MASK]", "[CLS]", "▁", "Ġ", "'s", "'S", "-", "_", "x_y", "ß", "İ", "١٢", "\u200b", "\x00", "\r\n", "$", "£5", "http://a.b/c?d=e"]
)  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(PIECES | st.just(" ") | st.text(max_size=4), max_size=30).map("".join), min_size=1, max_size=4)
)
def test_ids_are_those_of_the_tokenizer(name, texts):
    rust, bulk = KINDS[name], BULKS[name]
    assert bulk.segments or bulk.fast
    rust.encode_special_tokens = True
    expected = [encoding.ids for encoding in rust.encode_batch(texts, add_special_tokens=False)]
    for _ in range(2):  # the second time all of it is known
        assert [ids.tolist() for ids in bulk.ids(texts)] == expected


@pytest.mark.parametrize("name", KINDS)
def test_ids_at_the_borders_of_what_characters_are(name):
    """The first and the last of every run of characters of one category, between letters, white space and digits."""
    runs = groupby(map(chr, range(sys.maxunicode + 1)), unicodedata.category)
    borders = [one for kind, run in runs if kind != "Cs" for one in itemgetter(0, -1)(list(run))] + ["\u180e", "\u017f"]
    texts = [text.replace("?", one) for one in borders for text in ("a?b 1", "  ?1", " ? ?2 ", "'?s")]
    rust = KINDS[name]
    rust.encode_special_tokens = True
    expected = [encoding.ids for encoding in rust.encode_batch(texts, add_special_tokens=False)]
    assert [ids.tolist() for ids in BULKS[name].ids(texts)] == expected


@pytest.mark.parametrize("name", KINDS)
def test_ids_of_real_texts(name):
    rust, bulk = KINDS[name], Bulk(KINDS[name])
    rust.encode_special_tokens = True
    got = [ids.tolist() for start in range(0, len(TEXTS), 50) for ids in bulk.ids(TEXTS[start : start + 50])]
    assert got == [encoding.ids for encoding in rust.encode_batch(TEXTS, add_special_tokens=False)]
    if (looked := bulk.segments) is not None:
        assert len(looked.known) > 500 and max(map(len, looked.known)) <= segments.LONGEST


def test_what_fastokens_reads_otherwise_is_not_given_to_it():
    """A tokenizer that draws; one that fastokens does not know; one whose ids differ (here: by a reader that is wrong)."""
    drawing = Tokenizer.from_str(KINDS["GPT-2"].to_str())
    drawing.model.dropout = 0.5
    assert Bulk(drawing).fast is None and Bulk(KINDS["wordpiece"]).fast is None
    bulk = Bulk(KINDS["GPT-2"], Reversed)
    assert bulk.fast is None and bulk.segments is None
    assert bulk.ids(["the end"])[0].tolist() == KINDS["GPT-2"].encode("the end").ids


class Reversed:
    def __init__(self, text):
        self.inner = fastokens.Tokenizer.from_json_str(text)

    def encode_batch_flat(self, texts, **more):
        return self.inner.encode_batch_flat([text[::-1] for text in texts], **more)


def test_parts_that_are_not_known_are_not_given_to_fastokens():
    known = KINDS["GPT-2"].to_str()
    assert _readable(Tokenizer.from_str(known)) == known

    def other(**parts):
        tokenizer = Tokenizer.from_str(known)
        for name, part in parts.items():
            setattr(tokenizer, name, part)
        return tokenizer

    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pattern = next(iter(PATTERNS))
    before = [
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Whitespace(),
        *(
            pre_tokenizers.Sequence([split, plain])
            for split in (
                pre_tokenizers.Split(Regex(r"\S+ \S+"), behavior="isolated"),
                pre_tokenizers.Split(Regex(pattern), behavior="removed"),
                pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=True),
                pre_tokenizers.Digits(individual_digits=False),
            )
        ),
    ]
    others = [other(pre_tokenizer=each) for each in before] + [other(normalizer=normalizers.NFKC())]
    for change in ({"unk_token": "a"}, {"byte_fallback": True}, {"ignore_merges": True}, {"dropout": 0.1}):
        others.append(other())
        for name, value in change.items():
            setattr(others[-1].model, name, value)
    for flag in ("lstrip", "rstrip", "single_word"):
        others.append(other())
        others[-1].add_tokens([AddedToken("<mask>", **{flag: True})])
    doubled = json.loads(known)
    doubled["model"]["vocab"]["a"] = doubled["model"]["vocab"]["b"]
    others.append(Tokenizer.from_str(json.dumps(doubled)))
    assert [_readable(each) for each in others] == [None] * len(others)


def test_the_bundled_chat_model_is_tokenized_by_fastokens(smollm2):
    """Its vocabulary lacks some bytes; texts with such go through the tokenizer, alone."""
    rust = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    bulk = Bulk(rust)
    texts = [*TEXTS, "a\x04b", *PROBE, "1\u180e2", "<|im_start|>x<|im_end|>"]
    assert (
        bulk.fast is not None
        and DIGITS in json.loads(_readable(rust))["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    )
    rust.encode_special_tokens = True
    expected = [encoding.ids for encoding in rust.encode_batch(texts, add_special_tokens=False)]
    assert [ids.tolist() for ids in bulk.ids(texts)] == expected


def test_a_text_that_fastokens_gives_up_on_goes_through_the_tokenizer():
    class Failing(Reversed):
        def encode_batch_flat(self, texts, **more):
            if any("the end" in text for text in texts):
                raise ValueError("match limit exceeded")
            return self.inner.encode_batch_flat(texts, **more)

    rust = KINDS["Qwen2, split"]
    bulk = Bulk(rust, Failing)
    assert bulk.fast is not None
    expected = [rust.encode(text).ids for text in ("the end", "", "more")]
    assert [ids.tolist() for ids in bulk.ids(["the end", "", "more"])] == expected


def test_memory_is_bounded_and_what_is_common_is_kept():
    rust = KINDS["wordpiece"]
    looked = Segments(rust, kept=100)
    for number in range(40):
        looked.ids([" ".join(["the", "usual", "words", *(f"n{number}x{each}" for each in range(20))])])
        assert len(looked.known) <= 130
    assert "usual" in looked.known and "n0x1" not in looked.known and "n0x1" not in looked.older


def changed(**parts) -> Tokenizer:
    tokenizer = Tokenizer.from_str(KINDS["wordpiece"].to_str())
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def test_what_looks_across_spaces_is_not_cut():
    spaced, stripping = changed(), changed()
    spaced.add_tokens([AddedToken("new york", normalized=False)])
    stripping.add_tokens([AddedToken("<mask>", lstrip=True)])
    across = pre_tokenizers.Split(Regex(r"\S+ \S+"), behavior="isolated")
    behind = changed(pre_tokenizer=pre_tokenizers.Sequence([across, pre_tokenizers.BertPreTokenizer()]))
    replaced = changed(normalizer=normalizers.Replace(" ", "_"))
    assert separable(changed())
    assert not any(map(separable, (spaced, stripping, changed(pre_tokenizer=across), behind, replaced, KINDS["GPT-2"])))


def test_what_looks_beyond_a_word_is_not_divided():
    """Ids stay those of the tokenizer: an added token with a hyphen in it, pieces of letters and underscores, pieces of a whole segment."""
    added = changed()
    added.add_tokens([AddedToken("the-end", normalized=False)])
    whitespace = changed(pre_tokenizer=pre_tokenizers.Whitespace())
    for rust in (added, whitespace, changed(pre_tokenizer=pre_tokenizers.WhitespaceSplit())):
        assert separable(rust) and not divisible(rust)
        texts = ["this is the-end, of_it all_", "a-the-end b_c a,b"]
        expected = [encoding.ids for encoding in rust.encode_batch(texts, add_special_tokens=False)]
        assert [ids.tolist() for ids in Segments(rust).ids(texts)] == expected
    assert divisible(KINDS["wordpiece"]) and not divisible(KINDS["unigram"])
