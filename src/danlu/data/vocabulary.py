"""Tokenizers learned from text, and how well a tokenizer fits a text. The same texts in the same order give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Rust

from danlu.core.errors import UserError, nearest
from danlu.data.tokenizer import Tokenizer


KINDS = ("bpe", "wordpiece")
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where no token crosses: GPT-4's pattern as Qwen2 has it (English, Chinese and code), with combining marks kept to their letters as
in GPT-4o's. Digits stand alone, as in LLaMA (Touvron et al. 2023): a number is the same tokens wherever it stands, and a thousand
groups of three do not crowd out words from a small vocabulary."""

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
    template: bool = True,
    say: Callable[[str], None] = print,
) -> Tokenizer:
    """A tokenizer with `size` tokens, learned from texts.

    kind: `bpe` is byte-level byte-pair encoding (Sennrich et al. 2016, Radford et al. 2019): it writes any text, and back
        exactly. `wordpiece` is BERT's (Devlin et al. 2019), on whole characters: white space is lost, a character it
        never saw is [UNK], Chinese is split into characters.
    size: tokens, special ones included. Texts too short to fill it give fewer, which is said.
    specials: `decoder`: `<|endoftext|>` begins and ends a document, `<|im_start|>` and `<|im_end|>` are for chat.
        `encoder`: [PAD] [UNK] [CLS] [SEP] [MASK] with ids 0 to 4. None: what the kind is mostly used for.
    lowercase: for wordpiece; accents are taken off with it, as in BERT's uncased models.
    template: a decoder's tokenizer has the ChatML template.

    Raises UserError for a size below the alphabet, an unknown kind, or texts with nothing in them.
    """
    if kind not in KINDS:
        raise UserError(f"kind={kind}: expected {', '.join(KINDS)}", nearest(kind, KINDS))
    specials = specials or ("encoder" if kind == "wordpiece" else "decoder")
    if specials not in ("decoder", "encoder"):
        raise UserError(f"specials={specials}: expected decoder or encoder", nearest(specials, ("decoder", "encoder")))
    if kind == "wordpiece" and specials == "decoder":
        raise UserError(
            "kind=wordpiece with specials=decoder: it loses white space, so no text could be generated with it",
            "kind=bpe",
        )
    if lowercase and kind != "wordpiece":
        raise UserError(f"lowercase=true with kind={kind}: it gives every text back exactly", "kind=wordpiece")
    named = ENCODER if specials == "encoder" else DECODER
    tokens = list(dict.fromkeys(named.values())) + (list(CHAT) if specials == "decoder" else [])
    rust = (_wordpiece if kind == "wordpiece" else _bpe)(texts, size, tokens, lowercase)
    made = rust.get_vocab_size()
    if made > size:
        raise UserError(
            f"size={size:,}: the alphabet alone, each character as it begins a word and as it goes on, and {len(tokens)} special tokens are {made:,}",
            f"size={2 * made} or more, or kind=bpe, whose alphabet is 256 bytes",
        )
    if made < size:
        say(f"asked for {size:,} tokens, made {made:,}: no other pair of tokens stands in the texts twice")
    _around(rust, specials)
    return Tokenizer(
        rust, dict(named), template=CHATML if template and specials == "decoder" else None, special_tokens_map=named
    )


def pieces(texts: Iterable[str], longest: int = PIECE) -> Iterator[str]:
    """The texts, cut into at most so many characters: before white space where there is some."""
    for text in texts:
        start = 0
        while len(text) - start > longest:
            end = start + longest
            white = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
            end = white if white > 0 else end
            yield text[start:end]
            start = end
        yield text[start:]


def _bpe(texts: Iterable[str], size: int, tokens: list[str], lowercase: bool) -> Rust:
    if size < 256 + len(tokens):
        raise UserError(
            f"size={size:,}: expected at least {256 + len(tokens)}: every byte and {len(tokens)} special tokens",
            "size=8192",
        )
    rust = Rust(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=_special(tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(pieces(texts), trainer)
    return rust


def _wordpiece(texts: Iterable[str], size: int, tokens: list[str], lowercase: bool) -> Rust:
    """Twice over the texts: the library numbers the `##x` of the alphabet in the order of a hash table, another in every
    process, and breaks ties by those numbers. Named beforehand they have numbers, and so the vocabulary is one."""
    every = list(pieces(texts))
    prefix = "##"

    def trained(size: int, first: list[str]) -> Rust:
        rust = _bert(models.WordPiece(unk_token=ENCODER["unk_token"]), lowercase)
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            min_frequency=2,
            special_tokens=first,
            continuing_subword_prefix=prefix,
            show_progress=False,
        )
        rust.train_from_iterator(every, trainer)
        return rust

    alphabet = sorted(token for token in trained(0, []).get_vocab() if len(token) > 1)
    vocabulary = trained(size, [*tokens, *alphabet]).get_vocab()
    rust = _bert(models.WordPiece(vocabulary, unk_token=ENCODER["unk_token"]), lowercase)
    rust.add_special_tokens(_special(tokens))
    rust.decoder = decoders.WordPiece(prefix=prefix)
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
