"""A run as one GGUF file: our reader gets the very weights back, transformers' own reads the same model, text is cut the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from danlu.core.errors import UserError
from danlu.core.run import open_run
from danlu.data.tokenizer import Tokenizer
from danlu.data.vocabulary import SPLIT, learn
from danlu.models import gguf, pretrained
from danlu.models.base import resolve
from danlu.models.decoder import Decoder, describe
from danlu.stages.export import pre_tokenizer
from danlu.stages.load import open_final


EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
HARD = [
    "Hello  world 123, it's\n\n  naïve क्षेत्र नमस्ते สวัสดี 日本語<|im_end|> x   y\t\n",
    "I'LL e\u0301te\u0301 \u0301x !\u0301a\r\n\r\nb  \n",
    "😶‍🌫️🇩🇪 한국어 العَرَبِيَّة ٣٤ ½ ''''``...!!? he'RE",
]


@pytest.fixture(scope="module")
def from_zero(tmp_path_factory) -> Path:
    """A decoder of two layers pretrained from zero on real descriptions, its tokenizer learned from them."""
    import contextlib
    import io

    from danlu.cli import main

    out = tmp_path_factory.mktemp("gpt") / "games"
    settings = ("depth=2", "steps=12", "batch_size=8", "max_tokens=64", "vocabulary=512", "threads=1", "precision=float32", "baselines=no")  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["pretrain", "gpt", f"data={EXAMPLES / 'games.jsonl'}", *settings, f"out={out}"]) == 0
    return out


@pytest.fixture
def own_cache(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))


def test_our_reader_gets_the_same_weights_tokens_and_logits(from_zero, danlu, own_cache):
    result = danlu("export", from_zero, "out=my.gguf", "--json")
    assert result.code == 0, result.err
    assert result.json["bytes"] == Path("my.gguf").stat().st_size
    back, model = resolve("my.gguf").folder, from_zero / "model"
    wanted, found = load_file(model / "model.safetensors"), load_file(back / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    ours, theirs = (json.loads((folder / "tokenizer.json").read_text()) for folder in (model, back))
    assert all(theirs[part] == ours[part] for part in ours if part != "post_processor")
    one, two = Tokenizer.load(model), Tokenizer.load(back)
    assert (one.template, one.ends, one.named) == (two.template, two.ends, two.named)
    assert [one.encode(text, special=True) for text in HARD] == [two.encode(text, special=True) for text in HARD]
    ids, networks = torch.arange(60), [pretrained.load(folder, task="language").eval() for folder in (model, back)]
    with torch.no_grad():
        logits = [network.logits(network(ids, (60,))) for network in networks]
    assert torch.equal(*logits)


def test_transformers_own_reader_writes_and_cuts_the_same(from_zero, danlu, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert danlu("export", from_zero, "format=gguf", "out=my.gguf").code == 0
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="my.gguf", dtype=torch.float32, output_loading_info=True)  # fmt: skip
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokens, ours = AutoTokenizer.from_pretrained(tmp_path, gguf_file="my.gguf"), Tokenizer.load(from_zero / "model")
    texts = HARD + [json.loads(line)["text"] for line in (EXAMPLES / "games.jsonl").read_text("utf-8").splitlines()]
    assert [tokens(text).input_ids for text in texts] == [ours.encode(text, special=True) for text in texts]
    model = open_final(open_run(str(from_zero)), precision="float32").model
    ids = torch.tensor(ours.encode(texts[-1], special=True)[:16])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids[None]).logits[0], model.logits(model(ids, (16,))), atol=1e-4, rtol=1e-4)
    written = theirs.generate(ids[None], max_new_tokens=12, do_sample=False, eos_token_id=sorted(ours.ends))[0]
    answer = danlu("predict", from_zero, "--json", "max_new_tokens=12", "--", ours.decode(ids[1:].tolist())).json[0]
    assert ours.decode(written[16:].tolist(), skip_special=True) == answer["answer"]


@pytest.mark.parametrize(("dtype", "off"), [("float16", 2**-11), ("q8_0", 1 / 127)])
def test_smaller_files_hold_the_nearest_numbers(from_zero, danlu, own_cache, dtype, off):
    """off: the most a weight is off by, as a share of the largest of its row: half a step, and a little for a rounded scale."""
    assert danlu("export", from_zero, f"dtype={dtype}", f"out={dtype}.gguf").code == 0
    found = load_file(resolve(f"{dtype}.gguf").folder / "model.safetensors")
    exact = 0
    for name, wanted in load_file(from_zero / "model" / "model.safetensors").items():
        exact += torch.equal(found[name], wanted)
        largest = wanted.abs().max(-1, keepdim=True).values
        assert ((found[name] - wanted).abs() <= off * largest).all(), name
    assert exact == 5  # norms


def test_an_adapter_is_added_into_its_base(chat_run, danlu, own_cache):
    run = chat_run("method=lora")
    assert danlu("merge", run, "out=merged").code == 0
    assert danlu("export", run, "out=new/adapter.gguf").code == 0
    wanted = load_file("merged/model/model.safetensors")
    back = resolve("new/adapter.gguf").folder
    found = load_file(back / "model.safetensors")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    asked = [{"role": "user", "content": "A game."}]
    assert Tokenizer.load(back).render(asked, True) == Tokenizer.load(run / "model").render(asked, True)


def test_a_chat_run_puts_nothing_before_its_template(tmp_path, danlu, chat_file, own_cache):
    """A tokenizer from zero begins plain texts with a token, which a rendered conversation has not."""
    texts = [json.loads(line)["text"] for line in (EXAMPLES / "games.jsonl").read_text("utf-8").splitlines()]
    learn(texts, size=500, say=lambda _: None).save(tmp_path / "base")
    network = Decoder(describe(1, 510, 256), "language", None, None)
    pretrained.save(network, tmp_path / "base")
    assert danlu("finetune", "chat", f"model={tmp_path / 'base'}", f"data={chat_file}", "method=full", "steps=2", "batch_size=4", "answers=0", "threads=1", "precision=float32", "system=Be brief.", "out=r").code == 0  # fmt: skip
    said = danlu("export", "r", "out=r.gguf").out
    assert "system message is not in the file" in said and "Be brief." in said
    back = Tokenizer.load(resolve("r.gguf").folder)
    assert back.encode("a", special=True) == back.encode("a")
    assert back.size == 510 and back.rust.id_to_token(509) == "[PAD509]"  # rows that no token has


def test_smollm2_and_our_own_rule_have_names(smollm2):
    tokens = Tokenizer.load(smollm2)
    assert pre_tokenizer(json.loads(tokens.rust.to_str()), tokens.name) == "smollm"
    assert gguf.PATTERNS["qwen35"] == SPLIT


def test_what_the_format_cannot_hold_is_named(danlu, from_zero, text_run, tmp_path):
    def refused(*arguments: object) -> str:
        result = danlu("export", *arguments)
        assert result.code == 2 and "Traceback" not in result.err
        return result.err

    assert "format=onnx: expected gguf" in refused(from_zero, "format=onnx")
    assert "dtype=q8: expected float32, float16, q8_0" in refused(from_zero, "dtype=q8")
    assert "is a text-classification run" in refused(text_run())
    (tmp_path / "there.gguf").write_bytes(b"mine")
    assert "exists already" in refused(from_zero, "out=there.gguf")
    assert (tmp_path / "there.gguf").read_bytes() == b"mine"
    assert "could not be written" in refused(from_zero, "out=there.gguf/x.gguf")
    cut = Tokenizer.load(from_zero / "model")
    parts = json.loads(cut.rust.to_str())
    parts["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+"
    with pytest.raises(UserError, match="has no name for"):
        pre_tokenizer(parts, cut.name)


def test_another_architecture_is_refused_and_leaves_nothing(danlu, chatter, chat_file, tmp_path):
    shutil.copytree(chatter, tmp_path / "mistral")
    config = json.loads((tmp_path / "mistral" / "config.json").read_text())
    (tmp_path / "mistral" / "config.json").write_text(json.dumps(config | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}))  # fmt: skip
    assert danlu("finetune", "chat", "model=mistral", f"data={chat_file}", "steps=1", "batch_size=4", "answers=0", "threads=1", "out=r").code == 0  # fmt: skip
    result = danlu("export", "r", "out=r.gguf")
    assert result.code == 2 and "'mistral'; exported to GGUF are llama, qwen2, qwen3" in result.err
    assert not list(tmp_path.glob("*r.gguf*"))


@pytest.mark.parametrize("rope", [{"rope_type": "linear", "factor": 4.0}, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}])  # fmt: skip
def test_stretched_rotations_come_back(danlu, chatter, chat_file, tmp_path, own_cache, rope):
    shutil.copytree(chatter, tmp_path / "long")
    config = json.loads((tmp_path / "long" / "config.json").read_text())
    (tmp_path / "long" / "config.json").write_text(json.dumps(config | {"rope_scaling": rope, "rope_theta": 5e5}))
    assert danlu("finetune", "chat", "model=long", f"data={chat_file}", "steps=1", "batch_size=4", "answers=0", "threads=1", "out=r").code == 0  # fmt: skip
    assert danlu("export", "r", "out=r.gguf").code == 0
    found = json.loads((resolve("r.gguf").folder / "config.json").read_text())["rope_scaling"]
    assert found == rope
