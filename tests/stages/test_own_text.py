"""A person's own language model from the command line: trained, asked, resumed bit for bit, and refused where it looks ahead."""

from __future__ import annotations

import json
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from danlu.core.run import open_run
from danlu.core.track import read_lines
from danlu.models import own_text
from danlu.models.decoder import Decoder, describe
from danlu.stages.serve import answering


NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, vocabulary, context):
        super().__init__()
        self.cache = nn.Embedding(vocabulary, 32)  # a name that danlu's own decoders use for something else
        self.recurrent = nn.GRU(32, 32, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.unembedding = nn.Linear(32, vocabulary, bias=False)
        self.unembedding.weight = self.cache.weight

    def forward(self, ids):
        return self.unembedding(self.dropout(self.recurrent(self.cache(ids))[0]))


class Ahead(Net):
    def forward(self, ids):
        return super().forward(ids.flip(1)).flip(1)


class Hidden(Ahead):
    def __init__(self, vocabulary, context):
        super().__init__(vocabulary, context)
        self.unembedding.weight = nn.Parameter(torch.zeros(vocabulary, 32))


class Short(Net):
    def forward(self, ids):
        return super().forward(ids)[:, -1]


class Sure(Net):
    def forward(self, ids):
        return super().forward(ids).softmax(-1)


class Table(Net):
    def __init__(self, vocabulary, context):
        super().__init__(vocabulary, context)
        self.table = nn.Parameter(torch.randn(context, 32), requires_grad=False)
        self.places = nn.Parameter(torch.arange(context), requires_grad=False)

    def forward(self, ids):
        places = self.table[self.places[: ids.shape[1]]]
        return self.unembedding(self.recurrent(self.cache(ids) + places)[0])


class Frozen(Net):
    def __init__(self, vocabulary, context):
        super().__init__(vocabulary, context)
        self.requires_grad_(False)


class Broken(Net):
    def forward(self, ids):
        return self.nothing(ids)


def text(vocabulary, context):
    return "no network"
"""
SET = ("vocabulary=300", "max_tokens=64", "batch_size=8", "learning_rate=1e-2", "threads=1", "precision=float32", "validate_every=5", "near=0")  # fmt: skip


@pytest.fixture
def net(tmp_path, monkeypatch, texts):
    """my_text.py in the current folder, and texts.txt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_text.py").write_text(NET)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in texts))
    yield tmp_path
    sys.modules.pop("my_text", None)


def pretrain(danlu, *words, out):
    return danlu("pretrain", "gpt", "data=texts.jsonl", f"out={out}", *SET, *words)


def test_it_learns_writes_is_served_and_goes_on_with_other_text(net, danlu):
    done = pretrain(danlu, "model=my_text:Net", "steps=10", out="mine")
    assert done.code == 0, done.err
    assert "optimizer = adamw  (derived: which of your network's matrices" in done.out
    lines = [json.loads(line) for line in (net / "mine/metrics.jsonl").read_text().splitlines()]
    losses = [line["validation"]["loss"] for line in lines if "validation" in line]
    assert len(losses) == 2 and losses[1] < losses[0]
    config = json.loads((net / "mine/model/config.json").read_text())
    assert config["code"] == "my_text:Net" and config["model_type"] == "danlu_own"
    weights = load_file(net / "mine/model/model.safetensors")
    assert "cache.weight" in weights and weights["cache.weight"].shape == (300, 32), "its own names, a tied weight once"
    found = json.loads((net / "mine/evaluation.json").read_text())
    again = danlu("evaluate", "mine", "network=my_text:Net", "--json").json
    assert again["metrics"]["bits_per_byte"] == found["metrics"]["bits_per_byte"]
    said = danlu("predict", "mine", "A library", "network=my_text:Net", "max_new_tokens=5", "--json")
    assert said.code == 0 and said.json[0]["answer"], said.err
    with pytest.raises(Exception, match="never run"):
        answering(open_run("mine"))
    writer = answering(open_run("mine"), "my_text:Net")
    assert writer.opened.task == "language-model"
    more = danlu("pretrain", "gpt", "init=mine", "network=my_text:Net", "data=texts.jsonl", "steps=2", "threads=1", "precision=float32", "near=0", "out=more")  # fmt: skip
    assert more.code == 0, more.err
    assert "measuring the model it started from" in more.out


def test_it_learns_for_a_time_with_the_decay_of_the_recipe(net, danlu):
    done = pretrain(danlu, "model=my_text:Net", "hours=0.001", out="timed")
    assert done.code == 0, done.err
    used = json.loads((net / "timed/experiment.json").read_text())["used"]
    assert used["weight_decay"] == {"value": 0.1, "origin": "recipe gpt"} and used["steps"]["value"] > 0


def test_a_killed_run_goes_on_bit_for_bit(net, danlu, spawn):
    assert pretrain(danlu, "model=my_text:Net", "steps=40", out="whole").code == 0
    process = spawn(["pretrain", "gpt", "data=texts.jsonl", "out=killed", *SET, "model=my_text:Net", "steps=40"], net)
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        if list(net.glob("killed/checkpoints/step-*15")) and len(read_lines(net / "killed/metrics.jsonl")) > 16:
            break
        time.sleep(0.002)
    assert process.is_alive(), (net / "said.txt").read_text()
    process.kill()
    process.join()
    refused = danlu("resume", "killed")
    assert refused.code == 2 and "network=module:object" in refused.err
    done = danlu("resume", "killed", "network=my_text:Net")
    assert done.code == 0 and "going on from step" in done.out, done.err
    one, two = (load_file(net / name / "model/model.safetensors") for name in ("whole", "killed"))
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())
    lines = [(net / name / "metrics.jsonl").read_bytes() for name in ("whole", "killed")]
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("model=my_text:Ahead",), "my_text:Ahead looks ahead: with another token 12, the logits of the tokens before it are others"),
        (("model=my_text:Short",), "expected floats [2, 12, 300]"),
        (("model=my_text:Sure",), "gives probabilities (rows sum to 1), expected logits"),
        (("model=my_text:Frozen",), "has no parameters that learn"),
        (("model=my_text:Broken",), "my_text:Broken: AttributeError"),
        (("model=my_text:text",), "my_text:text returns str, expected a torch.nn.Module"),
        (("model=my_text:Nett",), "my_text has no Nett"),
        (("model=my_text:Net", "depth=2"), "depth= describes danlu's own networks, and my_text:Net is yours"),
        (("model=my_text:Net", "method=lora"), "random weights have nothing to keep"),
        (("network=my_text:Net",), "network=my_text:Net, but the network is a gpt"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_before_anything_is_trained(words, told, net, danlu):
    done = pretrain(danlu, *words, "steps=2", out="no")
    assert done.code == 2 and told in done.err and "Traceback" not in done.err, done.err
    assert not (net / "no" / "checkpoints").exists()


def test_what_your_code_freezes_stays_and_what_nobody_reads_is_refused(net, danlu):
    assert pretrain(danlu, "model=my_text:Table", "steps=2", out="mine").code == 0
    more = ("init=mine", "network=my_text:Table", "data=texts.jsonl", "steps=2", "threads=1", "near=0", "max_tokens=64")
    done = danlu("pretrain", "gpt", *more, "out=more")
    assert done.code == 0, done.err
    one, two = (load_file(net / name / "model/model.safetensors") for name in ("mine", "more"))
    assert torch.equal(one["table"], two["table"]) and torch.equal(one["places"], two["places"])
    assert not torch.equal(one["cache.weight"], two["cache.weight"])
    for word, told in (("dropout=0.3", "describes danlu's own networks"), ("method=lora", "is a network of your own")):
        done = danlu("pretrain", "gpt", *more, word, "out=no")
        assert done.code == 2 and told in done.err, done.err
    assert danlu("pretrain", "gpt", "data=texts.jsonl", "depth=1", "steps=1", *SET[:5], "near=0", "out=plain").code == 0
    done = danlu("evaluate", "plain", "network=my_text:Net")
    assert done.code == 2 and "network=my_text:Net, but the network is a" in done.err, done.err


def test_one_that_hides_behind_a_head_of_zeros_is_found_before_it_is_measured(net, danlu):
    done = pretrain(danlu, "model=my_text:Hidden", "steps=5", out="mine")
    assert done.code == 2 and "my_text:Hidden looks ahead" in done.err, done.err
    assert not (net / "mine/evaluation.json").exists()


def test_masked_models_of_your_own_are_refused(net, danlu):
    done = danlu("pretrain", "bert", "model=my_text:Net", "data=texts.jsonl", "out=no")
    assert done.code == 2 and "a network of your own does not learn masked-language-model" in done.err


def test_a_run_names_no_code_that_is_run(net, danlu):
    assert pretrain(danlu, "model=my_text:Net", "steps=2", out="mine").code == 0
    for words in (("evaluate", "mine"), ("predict", "mine", "A text")):
        done = danlu(*words)
        assert done.code == 2 and "code that a run or a file names is never run" in done.err, done.err
    (net / "canary.py").write_text("open('sung', 'w')\nfrom my_text import Net\n")
    for path in (*net.glob("mine/**/config.json"), net / "mine/experiment.json", net / "mine/run.json"):
        path.write_text(path.read_text().replace("my_text:Net", "canary:Net"))
    for words in (("evaluate", "mine"), ("predict", "mine", "A text"), ("resume", "mine"), ("show", "mine"),
                  ("export", "mine", "out=mine.gguf"), ("pretrain", "gpt", "init=mine", "data=texts.jsonl", "out=no")):  # fmt: skip
        done = danlu(*words)
        assert "Traceback" not in done.err, done.err
    assert not (net / "sung").exists()
    done = danlu("evaluate", "mine", "network=my_text:Ahead")
    assert done.code == 2 and "looks ahead" in done.err
    done = danlu("export", "mine", "out=mine.gguf")
    assert done.code == 2 and "is a network of your own" in done.err


def test_documents_are_what_they_are_alone():
    """Filled up behind, joined with others or alone: the same logits; and danlu's own decoder, padded so, is itself."""
    torch.manual_seed(0)
    plain = Decoder(describe(1, 64, 32)).eval()

    class Padded(torch.nn.Module):
        def __init__(self, vocabulary, context):
            super().__init__()
            self.inner = plain

        def forward(self, ids):
            return plain.logits(plain(ids.flatten(), (ids.shape[1],) * len(ids))).view(*ids.shape, -1)

    network = own_text.make(own_text.describe("here:Padded", 64, 32), Padded, 0)
    lengths, sizes = (5, 20, 1, 7, 32, 3, 1), []
    network.module.register_forward_pre_hook(lambda _, given: sizes.append(given[0].numel()))
    ids = torch.randint(64, (sum(lengths),))
    with torch.no_grad():
        found, expected = network(ids, lengths), plain.logits(plain(ids, lengths))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert sum(sizes) < 2 * sum(lengths), "a long document does not make the short ones as long"
