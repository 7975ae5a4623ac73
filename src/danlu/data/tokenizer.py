"""Text to tokens and conversations to text, from the files of a model's folder, without importing transformers."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from danlu.core.cache import read_text
from danlu.core.errors import UserError, panics_told, reading
from danlu.data.bulk import Bulk
from danlu.data.chat_template import compiled, rendered


NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
IDS = 1 << 24
"""Ids are below it."""

FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")


class Tokenizer:
    """A model's tokenizer and its chat template.

    Special tokens written inside a text, such as `<|im_end|>` in somebody's message, become those special tokens, as
    they do in transformers and in every server built on it: a template and its contents are one text. `specials_in`
    counts them, so that such rows can be shown before they are learned from.
    """

    def __init__(
        self,
        rust: tokenizers.Tokenizer,
        config: Mapping[str, Any],
        *,
        template: str | None = None,
        ends: Iterable[int] = (),
        special_tokens_map: Mapping[str, Any] | None = None,
        name: str = "tokenizer",
    ) -> None:
        rust.no_truncation()
        rust.no_padding()
        self.rust, self.config, self.template, self.name = rust, dict(config), template, name
        self.special_tokens_map = dict(special_tokens_map or {})
        self._ends = frozenset(ends)

    @classmethod
    def load(cls, folder: Path, template: str | None = None) -> Tokenizer:
        """Read `tokenizer.json` and what stands beside it; a folder without it goes through transformers once.

        template: a file with a Jinja chat template to use in place of the folder's.
        """
        folder = Path(folder)
        with reading(folder):
            return cls._read(folder, template)

    @classmethod
    def _read(cls, folder: Path, template: str | None) -> Tokenizer:
        file = folder / "tokenizer.json"
        if not file.is_file():
            return cls._converted(folder, template)
        try:
            with panics_told():
                rust = tokenizers.Tokenizer.from_str(read_text(file, 1 << 27))
        except Exception as error:  # noqa: BLE001 (the library raises nothing narrower)
            raise UserError(
                f"{file}: not a tokenizer: {error}", "download or export the model's folder again"
            ) from None
        config = _json(folder / "tokenizer_config.json")
        _add_tokens(rust, config, folder)
        largest = max(rust.get_vocab().values(), default=0)
        if largest >= IDS:  # the library walks through all below it, and an embedding has a row for each
            raise UserError(f"{file}: found the id {largest:,}, expected ids below {IDS:,}", "use another tokenizer")
        return cls(
            rust,
            config,
            template=_template(folder, config, template),
            ends=_end_ids(folder),
            special_tokens_map=_json(folder / "special_tokens_map.json"),
            name=folder.name,
        )

    @classmethod
    def _converted(cls, folder: Path, template: str | None) -> Tokenizer:
        """Other tokenizer files (SentencePiece, vocab.txt, merges.txt): transformers knows how to convert them."""
        missing = UserError(
            f"{folder}: no tokenizer.json, and no other tokenizer in it can be converted",
            "name a folder with the model's tokenizer files (tokenizer.json, or vocab.txt, or tokenizer.model)",
        )
        files = (
            "vocab.txt",
            "vocab.json",
            "merges.txt",
            "tokenizer.model",
            "spiece.model",
            "sentencepiece.bpe.model",
            "tekken.json",
        )
        if not any((folder / file).is_file() for file in files):
            raise missing
        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as name:
            try:
                AutoTokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(name)
            except Exception as error:  # noqa: BLE001 (whatever the conversion of some format raises)
                raise UserError(f"{missing.message}: {error}", missing.fix) from None
            if not (Path(name) / "tokenizer.json").is_file():
                raise missing
            made = cls.load(Path(name), template)
        made.name = folder.name
        made._ends |= _end_ids(folder)
        return made

    # ------------------------------------------------------------------------------------------------------------ text

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Text -> ids; `special` adds what the model expects around a text ([CLS] … [SEP], a BOS)."""
        with self._blamed():
            return self.rust.encode(text, add_special_tokens=special).ids

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """What goes wrong in here is the tokenizer's fault: a pattern of its file that goes back without end, for one."""
        try:
            with panics_told():
                yield
        except Exception as error:
            if type(error) not in (Exception, RuntimeError):  # tokenizers raises the bare class
                raise
            raise UserError(f"{self.name}: its tokenizer fails on a text: {error}", "use another tokenizer") from None

    def least(self, text: str, enough: int) -> int:
        """Tokens that a text has at least, if those are `enough`, a hundred or more; else 0. Of a text of any length only a beginning is read.

        Half of what the beginning has: a word that is cut in two may have more tokens than the whole one, WordPiece's up to a hundred.
        """
        size = 16 * enough
        while size < len(text):
            if (found := len(self.encode(text[:size])) // 2) >= enough:
                return found
            size *= 2
        return 0

    def encode_batch(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Many texts at once, on all cores."""
        with self._blamed():
            return [encoding.ids for encoding in self.rust.encode_batch_fast(list(texts), add_special_tokens=special)]

    def documents(self, texts: Sequence[str], causal: bool) -> list[np.ndarray]:
        """Running text as int32 ids: for a decoder with what begins a text and the token that ends it, for an encoder bare.

        A special token that is written out in a text is text, so that no document can end itself or speak for someone.
        """
        before, behind = self._around if causal else ([], [])
        end = [self.specials[self.named["eos_token"]]] if causal and "eos_token" in self.named else []
        with self._blamed():
            rows = self._bulk.ids(texts)
        behind = behind if behind[-1:] == end else behind + end
        return [np.concatenate([before, row, behind], dtype=np.int32, casting="unsafe") for row in rows]

    @cached_property
    def _bulk(self) -> Bulk:
        return Bulk(self.rust)

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """Ids that stand before and behind every text."""
        for text in ("x", *(self.decode([at]) for at in range(min(self.size, 1000)))):  # a vocabulary may have no "x"
            with suppress(UserError):  # or nothing for what it does not know
                if bare := self.encode(text):
                    whole = self.encode(text, special=True)
                    at = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
                    return whole[:at], whole[at + len(bare) :]
        raise UserError(f"{self.name}: its tokenizer has no token for any text", "use another tokenizer")

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of the text, and for each the characters it stands for: (first, behind the last)."""
        with self._blamed():
            encoding = self.rust.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Ids -> text."""
        with self._blamed():
            return self.rust.decode(list(ids), skip_special_tokens=skip_special)

    def decode_batch(self, batch: Sequence[Sequence[int]], skip_special: bool = False) -> list[str]:
        """Many at once, on all cores."""
        with self._blamed():
            return self.rust.decode_batch([list(ids) for ids in batch], skip_special_tokens=skip_special)

    @cached_property
    def size(self) -> int:
        """The largest id + 1: the rows an embedding needs at least."""
        return max(self.rust.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def base_size(self) -> int:
        """The same without the tokens that were added to the vocabulary."""
        return max(self.rust.get_vocab(with_added_tokens=False).values(), default=-1) + 1

    @cached_property
    def unknown(self) -> int | None:
        """The id that stands for text the vocabulary cannot write; None when it can write everything (byte-level)."""
        model = self.rust.model
        if getattr(model, "byte_fallback", False):
            return None
        # Unigram does not say its unknown token; the configuration does. The others say it, and None means bytes.
        text = model.unk_token if hasattr(model, "unk_token") else self.named.get("unk_token")
        return None if text is None else self.rust.token_to_id(text)

    @cached_property
    def named(self) -> dict[str, str]:
        """The tokens with a name, such as {"eos_token": "<|im_end|>"}: what a chat template may refer to."""
        found: dict[str, str] = {}
        for name in NAMED:
            value = self.config.get(name, self.special_tokens_map.get(name))
            text = value.get("content") if isinstance(value, Mapping) else value
            if isinstance(text, str):
                found[name] = text
        return found

    @cached_property
    def specials(self) -> dict[str, int]:
        """Every special token's text and id, the named ones included."""
        found = {
            token.content: number for number, token in self.rust.get_added_tokens_decoder().items() if token.special
        }
        for text in self.named.values():
            number = self.rust.token_to_id(text)
            if number is not None:
                found[text] = number
        return found

    @cached_property
    def _specials_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(filter(None, self.specials), key=lambda text: (-len(text), text))
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def specials_in(self, text: str) -> int:
        """How many special tokens are written out in a text: 0 in an honest one, see the class."""
        return len(self._specials_pattern.findall(text))

    def first_special(self, text: str, start: int = 0) -> tuple[int, int] | None:
        """Where the first special token from `start` on stands in the text: (first character, behind the last)."""
        found = self._specials_pattern.search(text, start)
        return found.span() if found else None

    @cached_property
    def ends(self) -> frozenset[int]:
        """Ids that end generation: those the folder names, and the one the chat template puts behind an answer."""
        named = self.specials.get(self.named.get("eos_token", ""))
        return self._ends | {number for number in (named, self._template_end()) if number is not None}

    def _template_end(self) -> int | None:
        """A base model's files name `<|endoftext|>`, while a chat template put onto it ends answers with `<|im_end|>`."""
        if self.template is None:
            return None
        mark = "danlu-answer"
        try:
            text = self.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}])
        except UserError:  # a template that wants more than this; the folder's own ends stand
            return None
        behind = text.find(mark) + len(mark)
        span = self.first_special(text, behind) if mark in text else None
        if span is None or text[behind : span[0]].strip():
            return None
        return self.specials[text[slice(*span)]]

    # ------------------------------------------------------------------------------------------------------------ chat

    @property
    def has_template(self) -> bool:
        return self.template is not None

    def render(self, messages: Sequence[Mapping[str, Any]], generation_prompt: bool = False) -> str:
        """The conversation as the text the model sees, as `apply_chat_template(tokenize=False)` writes it.

        generation_prompt: end with what stands before an answer, for the model to go on from there.
        The template runs in Jinja's immutable sandbox: it is code from somebody else.
        """
        if self.template is None:
            raise UserError(
                f"{self.name}: the model has no chat template",
                "use an instruction-tuned model, or name a file: template=FILE.jinja",
            )
        return rendered(self.template, messages, generation_prompt, self.named, self.name)

    def save(self, folder: Path) -> None:
        """Write the tokenizer so that transformers, vLLM and llama.cpp's converter read it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self.rust.to_str(pretty=True), encoding="utf-8")
        config = {key: value for key, value in self.config.items() if key != "chat_template"}
        config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
        _write(folder / "tokenizer_config.json", config)
        if self.special_tokens_map:
            _write(folder / "special_tokens_map.json", self.special_tokens_map)
        if self.template is not None:
            (folder / "chat_template.jinja").write_text(self.template, encoding="utf-8", newline="")


# ---------------------------------------------------------------------------------------------------------------- files


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: broken JSON: {error}", "download or export the model's folder again") from None
    if not isinstance(value, dict):
        raise UserError(
            f"{file}: found a {type(value).__name__}, expected an object", "download or export the model's folder again"
        )
    return value


def _write(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _add_tokens(rust: tokenizers.Tokenizer, config: Mapping[str, Any], folder: Path) -> None:
    """Tokens that the configuration adds and `tokenizer.json` does not have, in the order of their ids."""
    listed = config.get("added_tokens_decoder") or {}
    for number, token in sorted((int(number), token) for number, token in listed.items()):
        text = token["content"]
        if rust.token_to_id(text) is None:
            rust.add_tokens([tokenizers.AddedToken(text, **{flag: token[flag] for flag in FLAGS if flag in token})])
        if rust.token_to_id(text) != number:
            raise UserError(
                f"{folder}: {text!r} is {number} in tokenizer_config.json and {rust.token_to_id(text)} in tokenizer.json",
                "the two files belong to different models: download or export the folder again",
            )


def _template(folder: Path, config: Mapping[str, Any], wanted: str | None) -> str | None:
    if wanted is not None:
        file = Path(wanted)
        if not file.is_file():
            raise UserError(f"template={wanted}: no such file", "name a file with a Jinja chat template")
        try:
            text = read_text(file)
            compiled(text)
        except UnicodeDecodeError as error:
            raise UserError(f"template={wanted}: not UTF-8: {error}", "save it as UTF-8") from None
        return text
    file = folder / "chat_template.jinja"
    if file.is_file():
        return read_text(file)
    inline = config.get("chat_template")
    if isinstance(inline, list):  # several named ones
        inline = {entry["name"]: entry["template"] for entry in inline}.get("default")
    elif inline is None:
        inline = _json(folder / "chat_template.json").get("chat_template")
    if not isinstance(inline, str | None):
        raise TypeError(f"chat_template is a {type(inline).__name__}, expected text")
    return inline


def _end_ids(folder: Path) -> frozenset[int]:
    """What the model's own files say ends generation; a number or a list of them."""
    found = _json(folder / "generation_config.json").get("eos_token_id")
    if found is None:
        found = _json(folder / "config.json").get("eos_token_id")
    listed = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(number, int) for number in listed):
        raise TypeError(f"eos_token_id is {found!r}, expected a number or a list of them")
    return frozenset(listed)
