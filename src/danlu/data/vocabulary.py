"""Tokenizers learned from text, and how well a tokenizer fits a text. The same texts in the same order give the same bytes."""

from __future__ import annotations

import io
import itertools
import logging
import math
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Rust

from danlu.core.cache import cache_folder
from danlu.core.errors import UserError, nearest
from danlu.data.clean import script_of
from danlu.data.tokenizer import Tokenizer


KINDS = ("bpe", "wordpiece", "unigram")
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s{0,64}[\r\n]+|\s+(?!\S)|\s+"
)
"""Where no token crosses: GPT-4's pattern as Qwen2 has it (English, Chinese and code), with combining marks kept to their letters as
in GPT-4o's. Digits stand alone, as in LLaMA (Touvron et al. 2023): a number is the same tokens wherever it stands, and a thousand
groups of three do not crowd out words from a small vocabulary. `{0,64}` where Qwen2 has `*`: over ten million spaces it gives up."""

BORDER = "\x1f"
"""Between two words of a text that was segmented, where white space does not say so (ASCII's unit separator). Learning crosses none."""

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]+")
RUN = 64
"""Characters without a border that BPE learns from as one: it looks through all of a run for every pair that it joins."""

PIECE = 10_000
"""Characters that are looked at in one go: a line of many megabytes is cut before white space, where no token crosses."""

DECODER = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
CHAT = ("<|im_start|>", "<|im_end|>")
ENCODER = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
}  # fmt: skip
CHATML = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{%- endif %}
"""


def learn(
    texts: Iterable[str],
    *,
    kind: str = "bpe",
    size: int,
    specials: str | None = None,
    lowercase: bool = False,
    segment: str | None = None,
    template: bool = True,
    say: Callable[[str], None] = print,
) -> Tokenizer:
    """A tokenizer with `size` tokens, learned from texts.

    kind: `bpe` is byte-level byte-pair encoding (Sennrich et al. 2016, Radford et al. 2019): it writes any text, and back
        exactly. `wordpiece` is BERT's (Devlin et al. 2019), on whole characters: white space is lost, a character it
        never saw is [UNK], Chinese is split into characters. `unigram` (Kudo 2018) is SentencePiece's, its bytes for what
        it never saw; `▁` stands for a space in it, so that a text with that very character comes back with a space.
    size: tokens, special ones included. Texts too short to fill it give fewer, which is said.
    specials: `decoder`: `<|endoftext|>` begins and ends a document, `<|im_start|>` and `<|im_end|>` are for chat.
        `encoder`: [PAD] [UNK] [CLS] [SEP] [MASK] with ids 0 to 4. None: what the kind is mostly used for.
    lowercase: for wordpiece; accents are taken off with it, as in BERT's uncased models.
    segment: `jieba` cuts Chinese into words before anything is learned, so that no token is learned across two words.
        The tokenizer itself needs no jieba. Words that are known already are given with BORDER between them. Both are
        for bpe: WordPiece cuts Chinese into characters, and SentencePiece loses words that always stand between borders.
    template: a decoder's tokenizer has the ChatML template.

    Raises UserError for a size below the alphabet, settings that do not go together, or texts with nothing in them.
    """
    if kind not in KINDS:
        raise UserError(f"kind={kind}: expected {', '.join(KINDS)}", nearest(kind, KINDS))
    specials = specials or ("encoder" if kind == "wordpiece" else "decoder")
    if specials not in ("decoder", "encoder"):
        raise UserError(f"specials={specials}: expected decoder or encoder", nearest(specials, ("decoder", "encoder")))
    if kind == "wordpiece" and specials == "decoder":
        raise UserError("kind=wordpiece loses white space, so that nothing can be written with it", "kind=bpe")
    if kind != "wordpiece" and lowercase:
        raise UserError(f"lowercase=true: kind={kind} keeps a text as it is", "kind=wordpiece")
    if segment not in (None, "jieba"):
        raise UserError(f"segment={segment}: expected jieba", "segment=jieba")
    if segment and kind != "bpe":
        raise UserError(f"segment={segment}: kind={kind} does not learn within words that are given", "kind=bpe")
    named = ENCODER if specials == "encoder" else DECODER
    tokens = list(dict.fromkeys(named.values())) + (list(CHAT) if specials == "decoder" else [])
    given = pieces(texts)
    first = next((text for text in given if text.strip()), None)
    if first is None:
        raise UserError("there is no text to learn a tokenizer from", "give at least one text")
    given = itertools.chain([first], given)
    if segment:
        given = segmented(given)
    if kind == "bpe":
        rust = _bpe(given, size, tokens)
    elif kind == "wordpiece":
        rust = _wordpiece(list(given), size, tokens, lowercase)
    else:
        rust = _unigram(given, size, tokens)
    made = rust.get_vocab_size()
    if made < size:
        say(f"asked for {size:,} tokens, made {made:,}: nothing else stands in the texts often enough")
    _around(rust, specials)
    return Tokenizer(
        rust, dict(named), template=CHATML if template and specials == "decoder" else None, special_tokens_map=named
    )


def usual_size(text_bytes: int) -> int:
    """Tokens for a text of so many bytes: a power of two that grows with its square root, 1,024 to 32,768.

    The different words of a text grow with about the square root of its length (Heaps' law). Tokens that hardly occur are
    hardly learned: at 1 MB it is 4,096, of which the rarest occur some twenty times.
    """
    return int(2 ** min(15, max(10, round(math.log2(max(1, text_bytes)) / 2 + 2))))


def segmented(texts: Iterable[str]) -> Iterator[str]:
    """The texts with BORDER around every Chinese word, as jieba finds them (with its hidden Markov model for new words)."""
    cut = _jieba()
    for text in texts:
        yield HAN.sub(lambda run: BORDER + BORDER.join(cut(run[0])) + BORDER, text)


def _jieba() -> Callable[[str], list[str]]:
    try:
        with warnings.catch_warnings(action="ignore"):  # it is from before today's syntax
            import jieba
    except ModuleNotFoundError:
        raise UserError("segment=jieba needs jieba, which is not installed", "pip install 'danlu[zh]'") from None
    jieba.setLogLevel(logging.WARNING)
    words = jieba.Tokenizer()
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    words.tmp_dir = str(folder)  # where its dictionary is kept compiled; by default a folder that everyone may write to
    cut: Callable[[str], list[str]] = words.lcut
    return cut


def pieces(texts: Iterable[str]) -> Iterator[str]:
    """The texts, cut into at most PIECE characters: before white space where there is some."""
    for text in texts:
        start = 0
        while len(text) - start > PIECE:
            end = start + PIECE
            white = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
            end = white if white > 0 else end
            yield text[start:end]
            start = end
        yield text[start:]


def _too_small(size: int, least: int, why: str, fix: str) -> UserError:
    return UserError(f"size={size:,}: expected at least {least:,}: {why}", fix)


def _bpe(texts: Iterable[str], size: int, tokens: list[str]) -> Rust:
    if size < 256 + len(tokens):
        raise _too_small(size, 256 + len(tokens), f"every byte and {len(tokens)} special tokens", "size=8192")
    rust = Rust(models.BPE())
    split, to_bytes = (
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    )
    words = pre_tokenizers.Split(BORDER, behavior="removed")
    short = pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{RUN}}}"), behavior="isolated")
    rust.pre_tokenizer = pre_tokenizers.Sequence([words, split, short, to_bytes])
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=_special(tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(texts, trainer)
    rust.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    rust.decoder = decoders.ByteLevel()
    return rust


def _wordpiece(texts: Sequence[str], size: int, tokens: list[str], lowercase: bool) -> Rust:
    """Twice over the texts: the library numbers the `##x` of the alphabet in the order of a hash table, another in every
    process, and breaks ties by those numbers. Named beforehand they have numbers, and so the vocabulary is one."""

    def trained(size: int, first: list[str]) -> Rust:
        rust = _bert(models.WordPiece(unk_token=ENCODER["unk_token"]), lowercase)
        trainer = trainers.WordPieceTrainer(vocab_size=size, min_frequency=2, special_tokens=first, show_progress=False)
        rust.train_from_iterator(texts, trainer)
        return rust

    alphabet = trained(0, []).get_vocab()
    least = len(alphabet) + len(tokens)
    if size < least:
        why = f"each character as a word's first and, where it is one, as a later one, and {len(tokens)} special tokens"
        raise _too_small(size, least, why, f"size={2 * least}, or kind=bpe, whose alphabet is 256 bytes")
    vocabulary = trained(size, [*tokens, *sorted(token for token in alphabet if len(token) > 1)]).get_vocab()
    rust = _bert(models.WordPiece(vocabulary, unk_token=ENCODER["unk_token"]), lowercase)
    rust.add_special_tokens(_special(tokens))
    rust.decoder = decoders.WordPiece()
    return rust


def _unigram(texts: Iterable[str], size: int, tokens: list[str]) -> Rust:
    """By SentencePiece, on one thread: the trainer of `tokenizers` gives other scores in every process, and takes twice as long."""
    try:
        with warnings.catch_warnings(action="ignore"):
            import sentencepiece
    except ModuleNotFoundError:
        raise UserError(
            "kind=unigram needs sentencepiece, which is not installed", "pip install 'danlu[unigram]'"
        ) from None
    tokens = tokens if ENCODER["unk_token"] in tokens else [*tokens, "<unk>"]
    file = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=file, model_type="unigram", minloglevel=2, num_threads=1,
            vocab_size=size - len(tokens) + 1, hard_vocab_limit=False, byte_fallback=True, character_coverage=1.0,
            normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False, split_digits=True,
            max_sentence_length=1 << 30, bos_id=-1, eos_id=-1, unk_id=0,
        )  # fmt: skip
    except RuntimeError as error:
        least = re.search(r"\d+ vs (\d+)", str(error))
        if least is None:
            raise UserError(f"SentencePiece cannot learn from these texts: {error}", "give more text") from None
        why = f"every byte, every character of the texts and {len(tokens)} special tokens"
        least_size = int(least[1]) + len(tokens) - 1
        raise _too_small(size, least_size, why, f"size={2 * least_size}, or kind=bpe") from None
    model = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    learned = [(model.id_to_piece(piece), model.get_score(piece)) for piece in range(1, model.get_piece_size())]
    unknown = tokens.index("<unk>" if "<unk>" in tokens else ENCODER["unk_token"])
    rust = Rust(models.Unigram([(token, 0.0) for token in tokens] + learned, unk_id=unknown, byte_fallback=True))
    rust.add_special_tokens(_special(tokens))
    rust.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    rust.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return rust


def _bert(model: models.WordPiece, lowercase: bool) -> Rust:
    rust = Rust(model)
    rust.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=lowercase)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return rust


def _special(tokens: Iterable[str]) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def _around(rust: Rust, specials: str) -> None:
    """What `encode(special=True)` puts around a text."""
    if specials == "decoder":
        begin = DECODER["bos_token"]
        rust.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A",
            pair=f"{begin} $A {begin}:1 $B:1",
            special_tokens=[(begin, rust.token_to_id(begin))],
        )
        return
    before, behind = ENCODER["cls_token"], ENCODER["sep_token"]
    rust.post_processor = processors.TemplateProcessing(
        single=f"{before} $A {behind}",
        pair=f"{before} $A {behind} $B:1 {behind}:1",
        special_tokens=[(token, rust.token_to_id(token)) for token in (before, behind)],
    )


# -------------------------------------------------------------------------------------------------------------- measure


def survey(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, Any]:
    """How a tokenizer fits texts it was not learned from.

    `vocabulary`: tokens there are. Of all texts and, under `scripts`, of those mostly in one script where there are several: `texts`, `bytes` (UTF-8),
    `characters`, `tokens`, `bytes_per_token`, `characters_per_token`, `unknown_share` (of tokens), `exact_share` (of texts
    that come back as they were), `used_share` (of the vocabulary).
    """
    by_script: defaultdict[str, list[str]] = defaultdict(list)
    for text in texts:
        if text:
            by_script[script_of(text) or "no letters"].append(text)
    counts: dict[str, _Count] = {}
    for script, members in sorted(by_script.items(), key=lambda entry: (-len(entry[1]), entry[0])):
        counts[script] = _Count()
        for start in range(0, len(members), 1000):
            counts[script].add(tokenizer, members[start : start + 1000])
    whole = _Count()
    for count in counts.values():
        whole.join(count)
    found = {"vocabulary": tokenizer.size, **whole.figures(tokenizer)}
    if len(counts) > 1:
        found["scripts"] = {script: count.figures(tokenizer) for script, count in counts.items()}
    return found


class _Count:
    """Sums over texts."""

    def __init__(self) -> None:
        self.texts = self.bytes = self.characters = self.tokens = self.unknown = self.exact = 0
        self.used: set[int] = set()

    def add(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        encoded = tokenizer.encode_batch(texts)
        self.texts += len(texts)
        self.exact += sum(map(str.__eq__, tokenizer.decode_batch(encoded), texts))
        for text, ids in zip(texts, encoded, strict=True):
            self.bytes += len(text.encode())
            self.characters += len(text)
            self.tokens += len(ids)
            self.unknown += ids.count(tokenizer.unknown) if tokenizer.unknown is not None else 0
            self.used.update(ids)

    def join(self, other: _Count) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) | value if name == "used" else getattr(self, name) + value)

    def figures(self, tokenizer: Tokenizer) -> dict[str, Any]:
        return {
            "texts": self.texts,
            "bytes": self.bytes,
            "characters": self.characters,
            "tokens": self.tokens,
            "bytes_per_token": self.bytes / max(1, self.tokens),
            "characters_per_token": self.characters / max(1, self.tokens),
            "unknown_share": self.unknown / max(1, self.tokens),
            "exact_share": self.exact / max(1, self.texts),
            "used_share": len(self.used) / max(1, tokenizer.size),
        }
