"""The way of a person with images: pretrain, fine-tune, measure, ask; all of it through the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from danlu.core.errors import UserError
from danlu.core.track import read_lines
from danlu.models.folder import weights_sha256


RUN = ("precision=float32", "threads=1", "batch_size=16")


@pytest.fixture
def pretrain(danlu, digits):
    """`pretrain("mlp", "hidden=16", out="m")`: the result of a short run."""

    def make(recipe, *settings, out, data=digits, verb="pretrain"):
        result = danlu(verb, recipe, f"data={data}", *RUN, *settings, f"out={out}")
        assert result.code == 0, result.err + result.out
        return result

    return make


def size_of(path):
    with Image.open(path) as image:
        return image.size


def folder(tmp_path, digits, count=60):
    """The digits as a folder of PNG files in class folders."""
    with np.load(digits) as found:
        for place in range(count):
            into = tmp_path / "pictures" / f"digit-{found['labels'][place] % 3}"
            into.mkdir(parents=True, exist_ok=True)
            Image.fromarray(found["images"][place]).save(into / f"{place}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize(("hidden", "parameters"), [("64,64", 55_050), ("128", 101_770)])
def test_a_network_of_any_widths_learns_digits(pretrain, danlu, tmp_path, hidden, parameters):
    said = pretrain("mlp", f"hidden={hidden}", "dropout=0.2", "epochs=8", out="m").out
    assert f"{parameters / 1e6:.2f} M weights trained" in said
    assert json.loads((tmp_path / "m" / "data.json").read_text())["expected"]["trained_parameters"] == parameters
    found = json.loads((tmp_path / "m" / "evaluation.json").read_text())
    assert found["metrics"]["accuracy"]["value"] > 0.6
    assert [each["name"].split()[0] for each in found["baselines"]] == ["majority", "the"]
    again = danlu("evaluate", "m", "--json").json
    assert again["metrics"] == found["metrics"]


@pytest.mark.parametrize("recipe", ["mlp", "resnet18", "vgg", "vit", "autoencoder", "gan"])
def test_two_runs_with_one_seed_are_equal_and_predict_answers(recipe, pretrain, danlu, digits, tmp_path):
    for out in ("one", "two"):
        pretrain(recipe, "steps=3", out=out)
    assert weights_sha256(tmp_path / "one" / "model") == weights_sha256(tmp_path / "two" / "model")
    assert (tmp_path / "one" / "metrics.jsonl").read_bytes() == (tmp_path / "two" / "metrics.jsonl").read_bytes()
    with np.load(digits) as found:
        Image.fromarray(found["images"][0]).save(tmp_path / "a.png")
    if recipe == "gan":
        assert danlu("predict", "one", "out=new.png", "count=10").code == 0
        assert size_of(tmp_path / "new.png") == (4 * 29 - 1, 3 * 29 - 1)
        assert "makes images" in danlu("predict", "one", "a.png").err
        return
    answer = danlu("predict", "one", "a.png", "--json").json[0]
    assert answer["input"] == "a.png"
    if recipe == "autoencoder":
        assert 0 < answer["mse"] < 1
        assert danlu("predict", "one", "a.png", "out=back.png").code == 0
        assert size_of(tmp_path / "back.png") == (28, 57)
    else:
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)


def test_labels_leave_pretraining_without_labels_as_it_is(pretrain, digits, tmp_path):
    with np.load(digits) as found:
        order = np.random.default_rng(0).permutation(len(found["labels"]))
        np.savez(tmp_path / "permuted.npz", images=found["images"], labels=found["labels"][order])
    for recipe in ("autoencoder", "gan"):
        pretrain(recipe, "steps=4", out=f"{recipe}-1")
        pretrain(recipe, "steps=4", out=f"{recipe}-2", data=tmp_path / "permuted.npz")
        one, two = (weights_sha256(tmp_path / f"{recipe}-{n}" / "model") for n in (1, 2))
        assert one == two


def test_pretrained_weights_are_worth_what_is_measured(pretrain, danlu, tmp_path):
    """From a run and from one of its checkpoints: a new head, a lower rate, both rates printed, the gain on the page."""
    pretrain("autoencoder", "steps=40", "validate_every=10", out="ae")
    result = pretrain("image-classification", "init=ae", "steps=20", "gain_seeds=2", out="c", verb="finetune")
    assert "new head" in result.out
    assert "learning_rate = 0.0001  (derived: a tenth of 0.001, the rate of its pretraining" in result.out
    assert "learning rate: 0.001 in pretraining, 0.0001 now" in result.out
    facts = json.loads((tmp_path / "c" / "run.json").read_text())
    card = (tmp_path / "c" / "model" / "README.md").read_text()
    assert "- base model `ae`, " in card and "- data of `ae` `" in card and str(tmp_path) not in card
    assert result.out.count("warning: Only 30 test images: a share of so few") == 2, (
        "beforehand, and beside the figures"
    )
    assert facts["lineage"]["model"]["sha256"] == weights_sha256(tmp_path / "ae" / "model")
    transfer = json.loads((tmp_path / "c" / "evaluation.json").read_text())["transfer"]
    assert [row["labels"] for row in transfer["rows"]] == [100, 240]
    for row in transfer["rows"]:
        assert row["difference"]["value"] == pytest.approx(row["pretrained"]["value"] - row["random"]["value"])
        assert row["verdict"] in result.out
    start = min((tmp_path / "ae" / "checkpoints").glob("step-*"))
    middle = pretrain("image-classification", f"model={start}", "steps=2", "gain_seeds=0", out="d", verb="finetune")
    assert "a tenth of 0.001, the rate of its pretraining" in middle.out
    assert "- base model `ae`, " in (tmp_path / "d" / "model" / "README.md").read_text()
    page = (tmp_path / "ae" / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 4


def test_a_missing_start_names_the_runs_nearby(pretrain, danlu, digits):
    pretrain("mlp", "steps=1", out="runs/first")
    found = danlu("finetune", "image-classification", "init=firts", f"data={digits}", "out=c")
    assert found.code == 2 and "first" in found.err


def test_a_folder_of_images_is_read_in_imagenet_layout(pretrain, danlu, digits, tmp_path):
    pictures = folder(tmp_path, digits)
    pretrain("resnet18", "steps=2", out="r", data=pictures)
    assert json.loads((tmp_path / "r" / "run.json").read_text())["labels"] == ["digit-0", "digit-1", "digit-2"]
    found = danlu("evaluate", "r", f"data={pictures}", "--json")
    assert found.json["rows"] == 60 and "were learned from" in found.err
    files = sorted(str(path) for path in pictures.rglob("*.png"))[:3]
    answers = danlu("predict", "r", *files, "--json").json
    from transformers import AutoModelForImageClassification

    from danlu.data.processor import Processor

    model = AutoModelForImageClassification.from_pretrained(tmp_path / "r" / "model").eval()
    processor = Processor.load(tmp_path / "r" / "model")
    logits = model(processor.normalise(processor.prepare(files, files))).logits.softmax(-1)
    for answer, row in zip(answers, logits.tolist(), strict=True):
        assert list(answer["probabilities"].values()) == pytest.approx(row, abs=1e-5)


def test_rows_from_python_resume_and_measure_alike(danlu, digits, tmp_path, monkeypatch):
    import danlu as library

    monkeypatch.chdir(tmp_path)
    with np.load(digits) as found:
        images, labels = found["images"], found["labels"]
    settings = {"hidden": (16,), "batch_size": 16, "threads": 1, "warmup": 0, "schedule": "constant"}
    run = library.finetune("mlp", (images, labels), out="p", steps=6, **settings)
    library.finetune("mlp", (images, labels), out="q", steps=3, **settings)
    on = library.finetune("mlp", (images, labels), out="q", steps=6, **settings)
    assert weights_sha256(run.path / "model") == weights_sha256(on.path / "model")
    with pytest.raises(UserError, match="other rows"):
        library.finetune("mlp", (images[::-1], labels), out="q", steps=8, **settings)
    assert run.evaluate()["metrics"] == run.metrics
    assert run.evaluate((images[:50], labels[:50]))["rows"] == 50
    expected = [answer["label"] for answer in run.predict(list(images[:3]))]
    assert [answer["label"] for answer in run.predict(images[:3])] == expected
    assert [answer["label"] for answer in run.predict(images[0])] == expected[:1]
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    assert [answer["label"] for answer in run.predict("a.png")] == expected[:1]
    with np.load(tmp_path / "p" / "data" / "data.npz") as kept:
        assert len(kept["images"]) == len(images)
        assert (kept["images"] == images).all()


def test_a_gan_shows_both_losses(pretrain, tmp_path):
    pretrain("gan", "steps=6", "validate_every=3", out="g")
    lines = read_lines(tmp_path / "g" / "metrics.jsonl")
    assert all({"discriminator", "generator"} <= line.keys() for line in lines if "epoch" in line)
    assert {path.name for path in (tmp_path / "g" / "samples").iterdir()} == {f"step-0000000{n}.png" for n in (1, 3, 6)}
    assert json.loads((tmp_path / "g" / "evaluation.json").read_text())["metrics"]["frechet_pixels"]["value"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain", "mlp"], "no data="),
        (["pretrain", "mlp", "data={digits}", "model=mlpp"], "mlpp"),
        (["pretrain", "autoencoder", "data={digits}", "model=resnet18"], "cannot be trained for autoencoder"),
        (["pretrain", "mlp", "data={digits}", "augment=swirl"], "swirl"),
        (["pretrain", "mlp", "data={digits}", "rank=4"], "does not read"),
        (["pretrain", "mlp", "data={digits}", "image_size=4"], "between 8 and 1,024"),
        (["pretrain", "mlp", "data={text}"], "expected a folder of images"),
        (["pretrain", "mlp", "data={digits}", "gain_seeds=2"], "starts from random weights"),
        (["pretrain", "mlp", "data={digits}", "group=a"], "does not read"),
        (["pretrain", "chat", "data={digits}"], "danlu finetune chat"),
    ],
)
def test_bad_input_is_one_error(danlu, digits, tmp_path, words, message):
    text = tmp_path / "a.jsonl"
    text.write_text('{"text": "a"}\n')
    before = sorted(tmp_path.rglob("*"))
    result = danlu(*(word.format(digits=digits, text=text) for word in words))
    assert result.code == 2 and message in result.err, result.err
    assert "fix:" in result.err and "Traceback" not in result.err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_would_be_lost_or_hidden_is_refused(pretrain, danlu, digits, tmp_path):
    """An existing file in the way of out=, labels that are not the model's, a checkpoint whose start was changed."""
    pretrain("mlp", "hidden=8", "steps=2", "validate_every=1", out="m")
    pretrain("autoencoder", "steps=1", out="ae")
    with np.load(digits) as found:
        Image.fromarray(found["images"][0]).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    refused = danlu("predict", "ae", "a.png", "out=a.png")
    assert refused.code == 2 and "is there already" in refused.err and (tmp_path / "a.png").read_bytes() == before
    assert danlu("predict", "ae", "a.png", "out=nowhere/b.png").code == 2
    facts = json.loads((tmp_path / "m" / "run.json").read_text())
    (tmp_path / "m" / "run.json").write_text(json.dumps({**facts, "labels": facts["labels"][::-1]}))
    wrong = danlu("predict", "m", "a.png")
    assert wrong.code == 2 and "run.json has the labels 9, 8" in wrong.err
    (tmp_path / "m" / "run.json").write_text(json.dumps(facts))
    start = f"{tmp_path}/m/checkpoints/step-00000001"
    assert danlu("preflight", "image-classification", f"model={start}", f"data={digits}").code == 0
    (tmp_path / "m" / "start" / "config.json").write_text((tmp_path / "ae" / "model" / "config.json").read_text())
    assert danlu("preflight", "image-classification", f"model={start}", f"data={digits}").code == 2


def test_test_rows_that_were_pretrained_on_are_told(pretrain, danlu, digits):
    pretrain("mlp", "hidden=8", "steps=1", "seed=0", out="m")
    said = danlu("preflight", "image-classification", "model=m", f"data={digits}", "seed=1").out
    assert "test rows were learned from by m, so the figures flatter the model" in said
