"""GGUF files, written here with llama.cpp's own writer, become folders that transformers reads to the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from danlu.core.errors import UserError
from danlu.models.gguf import convert
from danlu.models.pretrained import load


Writer = Callable[..., dict[str, np.ndarray]]


@pytest.mark.parametrize("q8", [False, True], ids=["float32", "q8_0"])
@pytest.mark.parametrize(("kind", "tie"), [("llama", True), ("llama", False), ("qwen2", False), ("qwen3", True)])
def test_every_weight_is_exactly_what_the_file_stands_for(
    tmp_path: Path, kind: str, tie: bool, q8: bool, write_gguf: Writer
) -> None:
    stored = write_gguf(tmp_path / "a.gguf", kind, pre="qwen2" if kind != "llama" else "smollm", tie=tie, q8=q8)
    (out := tmp_path / "out").mkdir()
    assert convert(tmp_path / "a.gguf", out) == "mit"
    found = load_file(out / "model.safetensors")
    assert found.keys() == stored.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, torch.from_numpy(stored[name])), name


@pytest.mark.parametrize(("kind", "tie"), [("llama", True), ("qwen2", False), ("qwen3", True)])
def test_transformers_and_our_own_network_read_the_folder_to_equal_logits(
    tmp_path: Path, kind: str, tie: bool, write_gguf: Writer
) -> None:
    from transformers import AutoModelForCausalLM

    write_gguf(tmp_path / "a.gguf", kind, pre="qwen2" if kind != "llama" else "smollm", tie=tie)
    (out := tmp_path / "out").mkdir()
    convert(tmp_path / "a.gguf", out)
    theirs, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert theirs.config.rope_parameters["rope_theta"] == 10_000.0
    ours, ids = load(out, task="language").eval(), torch.arange(20)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(ids, (20,))), theirs(ids[None]).logits[0], atol=1e-5, rtol=1e-5)


def test_transformers_own_gguf_reader_agrees(tmp_path: Path, write_gguf: Writer) -> None:
    from transformers import AutoModelForCausalLM

    write_gguf(tmp_path / "a.gguf", "llama", q8=True)
    (out := tmp_path / "out").mkdir()
    convert(tmp_path / "a.gguf", out)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32).state_dict()
    for name, tensor in load_file(out / "model.safetensors").items():
        assert torch.equal(tensor, theirs[name].float()), name


def test_the_bytes_written_are_the_same_each_time(tmp_path: Path, write_gguf: Writer) -> None:
    write_gguf(tmp_path / "a.gguf", q8=True)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        convert(tmp_path / "a.gguf", tmp_path / name)
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


@pytest.fixture
def tokenizer(write_gguf: Writer) -> Callable[..., Tokenizer]:
    def build(folder: Path, **values: Any) -> Tokenizer:
        write_gguf(folder / "a.gguf", **values)
        (out := folder / "out").mkdir()
        convert(folder / "a.gguf", out)
        return Tokenizer.from_file(str(out / "tokenizer.json"))

    return build


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2"])
@pytest.mark.parametrize(
    "text", ["the  the 12!\n\n tab\t", "naïve 日本語 한국어 العربية 😀", "<|start|>the<|end|>\n<tool>"]
)
def test_text_comes_back_as_it_was(tmp_path: Path, pre: str, text: str, tokenizer: Callable[..., Tokenizer]) -> None:
    found = tokenizer(tmp_path, pre=pre)
    assert found.decode(found.encode(text).ids, skip_special_tokens=False) == text


def test_numbers_are_cut_as_the_checkpoint_was_trained(tmp_path: Path, tokenizer: Callable[..., Tokenizer]) -> None:
    assert tokenizer(tmp_path, pre="smollm").encode("  12").tokens == [
        "ĠĠ",
        "1",
        "2",
    ]  # every digit alone, blanks together
    for pre, tokens in (("gpt-2", ["Ġ", "Ġ1", "2"]), ("llama-bpe", ["Ġ", "Ġ", "12"]), ("qwen2", ["Ġ", "Ġ", "1", "2"])):
        (tmp_path / pre).mkdir()
        assert tokenizer(tmp_path / pre, pre=pre).encode("  12").tokens == tokens, pre


def test_control_tokens_are_special_and_user_defined_ones_are_not(
    tmp_path: Path, tokenizer: Callable[..., Tokenizer]
) -> None:
    found = tokenizer(tmp_path)
    ids = found.encode("<|start|>ab<tool><|end|>").ids
    assert [found.id_to_token(number) for number in ids] == ["<|start|>", "ab", "<tool>", "<|end|>"]
    assert found.decode(ids, skip_special_tokens=True) == "ab<tool>"


def test_a_first_token_is_added_only_if_the_file_says_so(tmp_path: Path, tokenizer: Callable[..., Tokenizer]) -> None:
    assert tokenizer(tmp_path).encode("ab").tokens == ["ab"]
    (tmp_path / "with").mkdir()
    assert tokenizer(tmp_path / "with", add_bos=True).encode("ab").tokens == ["<|start|>", "ab"]


def test_the_folder_has_template_end_tokens_and_configuration(
    tmp_path: Path, tokenizer: Callable[..., Tokenizer]
) -> None:
    from transformers import AutoTokenizer

    tokenizer(tmp_path)
    out = tmp_path / "out"
    theirs = AutoTokenizer.from_pretrained(out)
    assert theirs.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab<|end|>"
    assert (theirs.bos_token, theirs.eos_token, theirs.model_max_length) == ("<|start|>", "<|end|>", 128)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [0]
    assert json.loads((out / "config.json").read_text())["rms_norm_eps"] == 1e-5


def test_llama3_rope_factors_are_recognised_and_others_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from danlu.models.gguf import _llama3

    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 8192, "rope_theta": 5e5}
    config = LlamaConfig(
        hidden_size=512, num_attention_heads=4, rope_parameters=scaling, max_position_embeddings=131072
    )
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    factors = (1 / (5e5 ** (np.arange(0, 128, 2) / 128)) / stretched.numpy()).astype(np.float32)
    values = {"llama.rope.freq_base": 5e5}
    found = _llama3(values, "llama", factors, tmp_path)
    assert found == {key: value for key, value in scaling.items() if key != "rope_theta"}
    with pytest.raises(UserError, match="not those of Llama 3"):
        _llama3(values, "llama", factors[::-1].copy(), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "gemma3"}, "architecture 'gemma3'.*llama, qwen2, qwen3"),
        ({"tokenizer": "t5"}, "tokenizer of the kind 't5'"),
        ({"pre": "tekken"}, "rule 'tekken'"),
        ({"drop": "blk.1.ffn_up.weight"}, "lacks 1 .*model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, values: dict[str, Any], message: str, write_gguf: Writer) -> None:
    write_gguf(tmp_path / "a.gguf", **values)
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "a.gguf", tmp_path)


@pytest.mark.parametrize("share", [0.0001, 0.02, 0.5, 0.999])
def test_a_file_cut_short_is_damaged(tmp_path: Path, share: float, write_gguf: Writer) -> None:
    write_gguf(tmp_path / "a.gguf")
    whole = (tmp_path / "a.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: max(6, int(len(whole) * share))])
    with pytest.raises(UserError, match=r"cut\.gguf is damaged"):
        convert(tmp_path / "cut.gguf", tmp_path)


def test_another_file_by_that_name_is_not_gguf(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04something else")
    with pytest.raises(UserError, match="is not a GGUF file"):
        convert(tmp_path / "a.gguf", tmp_path)
