"""Looking up segments gives the ids that the tokenizer gives, for any text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stages.conftest import rows_of
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from danlu.data import segments
from danlu.data.segments import PATTERNS, Segments, divisible, separable
from danlu.data.vocabulary import learn


TEXTS = [row["text"] for row in rows_of("games.jsonl")[:200]] + [row["text"] for row in rows_of("reviews.jsonl")[:200]]


def byte_level(*before) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(before))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=900, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
        ),
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def kinds() -> dict[str, Tokenizer]:
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found = {
        f"pattern {at}": byte_level(pre_tokenizers.Split(Regex(each), behavior="isolated"), plain)
        for at, each in enumerate(sorted(PATTERNS))
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
PIECES = st.sampled_from(
    ["a", "the", "don't", "I'll", "12", "3.5", ".", ",", "...", "!?", "\n", "\n\n", "\t", " ", "  ", "\u3000", "\xa0", "\u2028", "\x1c", "\x85", "é", "e\u0301", "\u0301", "茶", "你好", "🙂", "👩‍🔧",
     "<|endoftext|>", "[MASK]", "[CLS]", "▁", "Ġ", "'s", "'S", "-", "_", "x_y", "ß", "İ", "١٢", "\u200b", "\x00", "\r\n", "$", "£5", "http://a.b/c?d=e"]
)  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(PIECES | st.just(" ") | st.text(max_size=4), max_size=30).map("".join), min_size=1, max_size=4)
)
def test_ids_are_those_of_the_tokenizer(name, texts):
    rust = KINDS[name]
    assert separable(rust)
    rust.encode_special_tokens = True
    expected = [encoding.ids for encoding in rust.encode_batch(texts, add_special_tokens=False)]
    looked = Segments(rust)
    for _ in range(2):  # the second time all of it is known
        assert [ids.tolist() for ids in looked.ids(texts)] == expected


@pytest.mark.parametrize("name", KINDS)
def test_ids_of_real_texts(name):
    rust = KINDS[name]
    rust.encode_special_tokens = True
    looked = Segments(rust)
    looked.older = {"unused": b"1234"}
    got = [ids.tolist() for start in range(0, len(TEXTS), 50) for ids in looked.ids(TEXTS[start : start + 50])]
    assert got == [encoding.ids for encoding in rust.encode_batch(TEXTS, add_special_tokens=False)]
    assert len(looked.known) > 500 and max(map(len, looked.known)) <= segments.LONGEST


def test_memory_is_bounded_and_what_is_common_is_kept():
    rust = KINDS["ours"]
    looked = Segments(rust, kept=100)
    for number in range(40):
        looked.ids([" ".join(["the", "usual", "words", *(f"n{number}x{each}" for each in range(20))])])
        assert len(looked.known) <= 130
    assert "usual" in looked.known and "n0x1" not in looked.known and "n0x1" not in looked.older


def test_what_looks_across_spaces_is_not_cut():
    spaced = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    spaced.add_tokens([AddedToken("new york", normalized=False)])
    stripping = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    stripping.add_tokens([AddedToken("<mask>", lstrip=True)])
    whole = Tokenizer(models.BPE())
    other = byte_level(
        pre_tokenizers.Split(Regex(r"\S+ \S+"), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    )
    prefixed = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))
    replaced = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    replaced.normalizer = normalizers.Replace(" ", "_")
    behind = byte_level(
        pre_tokenizers.Split(Regex(r"\S+ \S+"), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)
    )
    assert not any(map(separable, (spaced, stripping, whole, other, prefixed, replaced, behind)))


def test_what_looks_beyond_a_word_is_not_divided():
    """Ids stay those of the tokenizer: an added token with a hyphen in it, pieces of letters and underscores, pieces of a whole segment."""
    added = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    added.add_tokens([AddedToken("the-end", normalized=False)])
    wordly, spaced = byte_level(pre_tokenizers.Whitespace()), byte_level(pre_tokenizers.WhitespaceSplit())
    for rust in (added, wordly, spaced):
        assert separable(rust) and not divisible(rust)
        texts = ["this is the-end, of_it all_", "a-the-end b_c a,b"]
        expected = [encoding.ids for encoding in rust.encode_batch(texts, add_special_tokens=False)]
        assert [ids.tolist() for ids in Segments(rust).ids(texts)] == expected
    assert all(divisible(KINDS[name]) for name in KINDS if name != "unigram")
