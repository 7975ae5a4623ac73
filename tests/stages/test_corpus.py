"""Language models from zero, through the command line: learned, measured, read by transformers, and what comes after them."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.stages.conftest import EXAMPLES, lines, rows_of

from danlu.core.track import read_lines


SMALL = ("depth=2", "vocabulary=600", "max_tokens=64", "batch_size=8", "precision=float32", "threads=1")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Real text of 300 documents."""
    folder = tmp_path_factory.mktemp("corpus")
    return lines(folder / "corpus.jsonl", [{"text": row["text"]} for row in rows_of("games.jsonl")[:300]])


@pytest.fixture
def pretrain(danlu, corpus):
    def call(recipe, *more, steps=6):
        settings = dict(each.split("=", 1) for each in (*SMALL, f"steps={steps}", *more))
        if "tokenizer" in settings:
            del settings["vocabulary"]
        result = danlu("pretrain", recipe, f"data={corpus}", *(f"{key}={value}" for key, value in settings.items()))
        assert result.code == 0, result.err
        return result

    return call


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def test_embeddings_beside_muon_have_a_rate_of_their_own(pretrain):
    def used(run, *keys):
        settings = json.loads((run / "experiment.json").read_text())["used"]
        return [settings[key]["value"] for key in keys]

    keys = ("initialise", "learning_rate", "learning_rates")
    run = pretrain("gpt", "out=g", "warmup=0", "weight_decay=0", "schedule=constant", steps=1).run
    assert used(run, *keys) == ["zero_residual", 0.01, {"embeddings": 0.1}]
    assert read_lines(run / "metrics.jsonl")[0]["learning_rate"] == 0.01, "that of most weights"
    moved = weights(run)
    # The first update of AdamW is the rate itself; after one, a head that was drawn with 0.02 is still nearer to that than to 0.1.
    assert (
        float(moved["model.embed_tokens.weight"].abs().quantile(0.9)) > 0.1 > 3 * float(moved["lm_head.weight"].std())
    )
    still = pretrain("gpt", "out=f", "freeze=embeddings", steps=1).run
    assert used(still, *keys) == ["zero_residual", 0.01, None]
    deep = pretrain("gpt", "out=d", "freeze=layers.0", steps=1).run  # which would add nothing for ever
    assert used(deep, *keys) == [None, 0.01, {"embeddings": 0.1}]
    beside = pretrain("gpt", "out=n", "learning_rates=norms=0", steps=1).run
    assert used(beside, "learning_rates") == [{"embeddings": 0.1, "norms": 0}]
    own = pretrain("gpt", "out=o", "learning_rates=embed_tokens=0.3", steps=1).run
    assert used(own, "learning_rates") == [{"embed_tokens": 0.3}]
    other = pretrain("gpt", "out=a", "optimizer=adamw", steps=1).run
    assert used(other, *keys) == [None, 0.003, None]
    assert used(pretrain("gpt", "out=l", "learning_rate=0.002", steps=1).run, "learning_rates") == [
        {"embeddings": 0.02}
    ]
    masked = pretrain("bert", "out=b", steps=1).run
    assert used(masked, *keys) == [None, 0.003, None]
    plain = pretrain("gpt", "out=plain", "optimizer=sgd", steps=1).run
    assert used(plain, *keys) == [None, pytest.approx(0.3), None], "plain gradients are small"


def test_weight_decay_follows_from_the_passes(pretrain, danlu, corpus):
    def used(run):
        return json.loads((run / "experiment.json").read_text())["used"]["weight_decay"]["value"]

    for words, value in (
        (["epochs=4"], 2.0),
        (["epochs=4", "weight_decay=0.2"], 0.2),
        (["epochs=4", "optimizer=adamw", "learning_rate=0.02"], 1.0),
        (["epochs=4", "optimizer=adam"], 0),
        (["epochs=4", "optimizer=adam", "weight_decay=0.1"], 0.1),
        (["epochs=4", "optimizer=sgd"], 0),
    ):
        result = pretrain("gpt", f"out={'-'.join(words)}", "max_rows=40", *words, steps=1000)  # epochs= ends before
        assert used(result.run) == value, words
    said = pretrain("gpt", "out=said").out
    assert "weight_decay = 0.1  (derived: 0." in said
    further = danlu("pretrain", "gpt", "init=said", f"data={corpus}", "out=further", "steps=2")
    assert used(further.run) == 0.1, "learned weights: few steps, a low rate"


def test_a_decoder_learns_and_transformers_reads_it(pretrain, danlu):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = pretrain("gpt", "out=g", steps=40)
    run = result.run
    figures = json.loads((run / "evaluation.json").read_text())
    counted = figures["baselines"][0]["metrics"]["bits_per_byte"]["value"]
    found = figures["metrics"]["bits_per_byte"]
    assert found["low"] < found["value"] < found["high"] < counted, "40 updates beat counts of tokens"
    assert "bits_per_byte" in result.err and "it writes:" in result.err
    network, tokenizer = (kind.from_pretrained(run / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert type(network).__name__ == "LlamaForCausalLM"
    losses, sizes = 0.0, 0
    for line in (run / "data" / "test.jsonl").read_text("utf-8").splitlines():
        text = json.loads(line)["text"]
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert ids[0] == tokenizer.bos_token_id
        for start in range(0, len(ids), 64):
            piece = torch.tensor(ids[start : start + 65])
            with torch.no_grad():
                logits = network(piece[None, :-1]).logits[0]
            losses += float(torch.nn.functional.cross_entropy(logits, piece[1:], reduction="sum"))
        sizes += len(text.encode())
    assert losses / math.log(2) / sizes == pytest.approx(found["value"], rel=1e-5)
    asked = "This is a game"
    said = danlu("predict", "g", asked, "max_new_tokens=8", "--json").json[0]["answer"]
    ids = tokenizer(asked, return_tensors="pt")
    made = network.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(made, skip_special_tokens=True) == said


def test_an_encoder_learns_and_transformers_reads_it(pretrain, danlu):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    run = pretrain("bert", "out=b", "validate_every=10", steps=40).run
    figures = json.loads((run / "evaluation.json").read_text())
    checks = [line["validation"]["loss"] for line in read_lines(run / "metrics.jsonl") if "validation" in line]
    assert checks[-1] < checks[0] - 0.1 < math.log(600) - 0.1, "what is filled in gets better"
    assert (
        set(figures["metrics"]) == {"loss", "perplexity", "token_accuracy"} and figures["primary"] == "token_accuracy"
    )
    network, tokenizer = (kind.from_pretrained(run / "model") for kind in (AutoModelForMaskedLM, AutoTokenizer))
    assert type(network).__name__ == "BertForMaskedLM"
    (found,) = danlu("predict", "b", "this is a [MASK] for two players", "--json").json
    ids = tokenizer("this is a [MASK] for two players", return_tensors="pt")
    with torch.no_grad():
        logits = network(**ids).logits[0, ids["input_ids"][0] == tokenizer.mask_token_id]
    chances, tokens = logits.softmax(-1).topk(5)
    mine = [each["probability"] for each in found["candidates"][0]]
    np.testing.assert_allclose(mine, chances[0].tolist(), atol=2e-6)
    assert found["candidates"][0][0]["token"] == tokenizer.decode(tokens[0, :1])
    refused = danlu("predict", "b", "nothing to fill")
    assert refused.code == 2 and "[MASK]" in refused.err


@pytest.mark.parametrize("recipe", ["gpt", "bert"])
def test_two_runs_with_one_seed_are_bitwise_equal_and_another_seed_is_not(recipe, pretrain):
    one, two, other = (
        pretrain(recipe, f"seed={seed}", f"out={name}").run for name, seed in [("a", 0), ("b", 0), ("c", 1)]
    )
    for name in ("metrics.jsonl", "model/tokenizer.json", "evaluation.json", "data/test.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert all(weights(one)[key].equal(tensor) for key, tensor in weights(two).items())
    assert not any(weights(one)[key].equal(tensor) for key, tensor in weights(other).items() if tensor.ndim == 2)


@pytest.mark.parametrize("recipe", ["gpt", "bert"])
def test_a_run_with_a_tokenizer_that_was_given_goes_on(recipe, pretrain, danlu):
    pretrain(recipe, "out=first", steps=2)
    words = [recipe, "tokenizer=first", "vocabulary=none", "out=second"]
    pretrain(*words, steps=2)
    longer = pretrain(*words, steps=4)
    assert "going on from step 2 of 4" in longer.out


def test_what_is_pretrained_starts_what_is_fine_tuned(pretrain, danlu, chat_file, text_file):
    """A classifier from either; a chat model from the decoder; each goes on learning running text from the other's rows."""
    pretrain("gpt", "out=g")
    pretrain("gpt", "out=long", "max_tokens=512", steps=1)
    pretrain("bert", "out=b")
    quick = ("epochs=0.2", "batch_size=8", "precision=float32", "threads=1", "method=full")
    for model in ("g", "b"):
        result = danlu("finetune", "text-classification", f"init={model}", f"data={text_file}", *quick, "baselines=no")
        assert result.code == 0, result.err
        used = json.loads((result.run / "experiment.json").read_text())["used"]
        rate, rates = used["learning_rate"], used["learning_rates"]["value"]
        assert rate["value"] == pytest.approx(3e-4) and rates is None, "a tenth of what AdamW bears, whatever Muon did"
        assert ("as far as AdamW bears it" in rate["origin"]) == (model == "g")
    chat = ("finetune", "chat", f"data={chat_file}")
    result = danlu(*chat, "init=long", "steps=1", "answers=1", "answer_tokens=4", *quick[1:])
    assert result.code == 0, result.err
    assert danlu("predict", result.run, "Hello", "max_new_tokens=3").code == 0


def test_learned_weights_go_on_with_running_text(pretrain, danlu, corpus, chatter):
    pretrain("gpt", "out=g")
    on = danlu(
        "pretrain", "gpt", "init=g", f"data={corpus}", "steps=2", "seed=1", "precision=float32", "threads=1", "out=on"
    )
    assert on.code == 0, on.err
    figures = json.loads((on.run / "evaluation.json").read_text())
    assert "the model it started from" in figures["before"]["comparison"]["verdict"]
    assert "were learned from by g, so the figures flatter" in on.out
    assert (on.run / "model" / "tokenizer.json").read_bytes() == (on.run.parent / "g/model/tokenizer.json").read_bytes()
    lora = danlu(
        "pretrain", "gpt", f"init={chatter}", f"data={corpus}", "method=lora", "steps=2", "threads=1", "out=lora"
    )
    assert lora.code == 0, lora.err
    assert (lora.run / "model" / "adapter_model.safetensors").is_file()
    for words in (["init=g", "seed=1", "precision=float32", "out=on"], [f"init={chatter}", "method=lora", "out=lora"]):
        longer = danlu("pretrain", "gpt", f"data={corpus}", *words, "threads=1", "steps=4")
        assert longer.code == 0, longer.err
        assert "going on from step 2 of 4" in longer.out


def test_a_run_may_have_the_name_of_its_model_and_be_moved_after_it_went_on(pretrain, danlu, tmp_path):
    """`out=gpt` is a folder now, and `gpt` still means random weights; the tokenizer that was learned once goes with the run."""
    run = pretrain("gpt", "out=gpt", steps=2).run
    assert "going on from step 2 of 4" in pretrain("gpt", "out=gpt", steps=4).out
    (tmp_path / "elsewhere").mkdir()
    run.rename(tmp_path / "elsewhere" / "moved")
    assert "going on from step 4 of 6" in pretrain("gpt", "out=elsewhere/moved", steps=6).out


def test_learned_weights_fill_the_hours_that_are_given(pretrain, danlu, corpus):
    """What validations and the optimizer take is counted, so that the learning rate comes to its end; eight validations, however long it is."""
    pretrain("gpt", "out=g")
    words = (f"data={corpus}", "init=g", "hours=0.002", "precision=float32", "threads=1")
    found = danlu("pretrain", "gpt", *words, "out=timed")
    assert found.code == 0, found.err
    used = json.loads((found.run / "experiment.json").read_text())["used"]
    steps, every = used["steps"]["value"], used["validate_every"]["value"]
    planned = re.search(r"of (\d+) planned updates", used["steps"]["origin"])
    assert planned or used["steps"]["origin"].startswith("derived: 0.002 hours at "), "the time was over before"
    assert every == math.ceil((int(planned[1]) if planned else steps) / 8)
    assert sum("validation" in line for line in read_lines(found.run / "metrics.jsonl")) <= math.ceil(steps / every)
    mine = danlu("pretrain", "gpt", *words, "validate_every=3", "out=mine")
    assert json.loads((mine.run / "experiment.json").read_text())["used"]["validate_every"]["value"] == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gpt", "model=bert"), "model=bert cannot be trained for language-model"),
        (("gpt", "method=lora"), "random weights have nothing to keep"),
        (("gpt", "too_long=drop"), "which language-model does not read"),
        (("gpt", "label=label"), "which language-model does not read"),
        (("gpt", "tokenizer=nowhere", "vocabulary=500"), "there is no vocabulary= to learn"),
        (("gpt", "text=nothing"), "no column 'nothing'"),
    ],
)
def test_what_does_not_fit_is_told(words, said, danlu, corpus, tmp_path):
    result = danlu("pretrain", words[0], f"data={corpus}", "steps=1", *words[1:], "out=r")
    assert result.code == 2 and said in result.err, result.err
    assert not (tmp_path / "r").exists()


def test_the_wrong_kind_of_weights_is_told(pretrain, danlu, corpus, sorter):
    pretrain("gpt", "out=g")
    for recipe, model, said in [("bert", "g", "a decoder"), ("gpt", sorter, "an encoder")]:
        result = danlu("pretrain", recipe, f"init={model}", f"data={corpus}", "steps=1")
        assert result.code == 2 and said in result.err, result.err
    result = danlu("pretrain", "gpt", "init=g", "depth=3", f"data={corpus}")
    assert result.code == 2 and "depth= describes random weights, but g has weights" in result.err


def test_a_text_file_and_chinese(danlu, tmp_path):
    """Documents between blank lines of a .txt; nothing of Chinese is unknown to a tokenizer learned from it."""
    pages = sorted((EXAMPLES.parents[1] / "docs" / "zh").glob("*.md"))
    (tmp_path / "zh.txt").write_text("\n\n".join(page.read_text("utf-8") for page in pages), "utf-8")
    result = danlu("pretrain", "gpt", "data=zh.txt", *SMALL, "steps=3", "out=zh")
    assert result.code == 0, result.err
    assert "unknown 0.00%" in result.out
    assert danlu("predict", "zh", "一个", "max_new_tokens=4").code == 0


def test_a_folder_of_texts_is_measured_document_by_document(danlu, corpus, tmp_path):
    """The same documents from a file and from a folder: the same figures; each file is a document."""
    (tmp_path / "folder").mkdir()
    texts = [json.loads(line)["text"] for line in corpus.read_text("utf-8").splitlines()[:60]]
    lines(tmp_path / "file.jsonl", [{"text": text} for text in texts])
    for place, text in enumerate(texts):
        (tmp_path / "folder" / f"{place:02}.txt").write_text(text, "utf-8")
    found = []
    for data in ("file.jsonl", "folder"):
        result = danlu("pretrain", "gpt", f"data={data}", *SMALL, "steps=2", "test_share=0.3", f"out={data[:3]}")
        assert result.code == 0, result.err
        figures = json.loads((result.run / "evaluation.json").read_text())
        found.append([figures["metrics"], [each["metrics"] for each in figures["baselines"]]])
        assert json.loads((result.run / "data.json").read_text())["tokens"]["lengths"]["max"] < 600
    assert found[0] == found[1]


def test_an_encoder_has_a_token_for_every_character(danlu, tmp_path):
    characters = [chr(0x4E00 + n) for n in range(900)]
    rows = ["".join(characters[(37 * row + n) % 900] for n in range(60)) for row in range(60)]
    lines(tmp_path / "zh.jsonl", [{"text": text} for text in rows])
    result = danlu("pretrain", "bert", "data=zh.jsonl", "steps=1", "depth=2", "out=zh")
    assert result.code == 0, result.err
    small = danlu("pretrain", "bert", "data=zh.jsonl", "steps=1", "depth=2", "vocabulary=300")
    assert small.code == 2 and "vocabulary=300: expected at least" in small.err
    few = danlu("pretrain", "bert", "data=few.jsonl", "steps=1")
    assert few.code == 2
    lines(tmp_path / "few.jsonl", [{"text": f"one two three {n % 7}"} for n in range(60)])
    few = danlu("pretrain", "bert", "data=few.jsonl", "steps=1", "depth=2", "out=few")
    assert few.code == 0, few.err
