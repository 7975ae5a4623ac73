"""The planner through the command line and its functions: it answers from speeds it is given, and a training is what it planned."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from danlu.core import calibration
from danlu.core.device import machine
from danlu.core.errors import UserError
from danlu.core.track import read_lines
from danlu.data.tokenizer import Tokenizer
from danlu.data.vocabulary import learn
from danlu.models import scaling
from danlu.stages import pace, plan, train
from danlu.stages.plan import Given, Speed, choose


TEXT = Path(__file__).parents[2] / "examples" / "data" / "sections.jsonl"
RATE = 40e9
EVEN = Speed({256: RATE}, {256: RATE}, {256: RATE}, 1e-9)
GIVEN = Given(kind="gpt", vocabulary=4096, memory=20e9)


def test_between_two_measured_widths_the_rate_is_between_them():
    rates = {128: 10.0, 512: 40.0}
    assert [plan.between(rates, width) for width in (64, 128, 256, 512, 1024)] == pytest.approx([10, 10, 20, 40, 40])


def test_updates_fade_sooner_the_more_passes_there_are():
    assert plan.weight_decay(0.01, 4, 122) == (0.41, "4 passes: an update fades to 1/e in 244 updates")
    assert plan.weight_decay(0.01, 8, 122)[0] == 0.82 == plan.weight_decay(0.01, 20, 122)[0], "a pass at least"
    assert plan.weight_decay(0.01, 8, 3)[0] == 2, "not in less than 50 updates"
    assert plan.weight_decay(0.01, 1.33, 216) == (0.1, "1.3 passes: an update fades to 1/e in 1,000 updates")
    assert plan.weight_decay(1e-4, 8, 122)[0] == 2, "or they would vanish before they learn"


@pytest.mark.parametrize("hours", [0.05, 0.5, 24.0])
def test_the_time_is_that_of_every_part_and_within_the_hours(hours):
    found = choose(replace(GIVEN, hours=hours, different=3e6, held=2e5), EVEN)
    config = plan.config_of("gpt", found.depth, 4096, 256)
    layers, head = scaling.flops(config, 256, 2048)
    inside, rest = scaling.parameters(config)
    update = scaling.muon_flops(config) / RATE + (inside + rest) * 1e-9
    looked = min(2e5, found.tokens / 40)
    naive = (found.tokens + 8 * looked / 3) * (layers + head) / RATE + found.steps * update + 8 * pace.LOOK_SECONDS
    assert found.seconds == pytest.approx(naive, rel=1e-4)
    assert found.tokens == found.steps * found.batch and found.tokens <= 40 * 3e6 + found.batch
    if found.tokens < 39 * 3e6:
        assert 0.85 * hours * 3600 < found.seconds <= 0.951 * hours * 3600
    assert found.parameters == inside + rest


def test_the_depth_has_the_least_loss_of_all_that_fit():
    """By Kaplan's law below 10^18 operations, by Hoffmann's above."""
    for hours, law in ((0.5, "loss_of_small"), (10.0, "loss_of_small"), (100.0, "loss_of_small"), (1e5, "loss")):
        given = replace(GIVEN, hours=hours, memory=1e13)
        found = choose(given, EVEN)
        others = [choose(replace(given, depth=depth), EVEN) for depth in range(2, 25)]
        best = min(others, key=lambda each: getattr(each, law))
        assert found == best
        assert (6 * found.parameters * found.tokens < 1e18) == (law == "loss_of_small")
    assert choose(replace(GIVEN, hours=100.0), EVEN).depth > choose(replace(GIVEN, hours=0.5), EVEN).depth


def test_less_memory_makes_it_smaller_and_none_is_an_error():
    given = replace(GIVEN, hours=10_000.0)
    large = choose(given, EVEN)
    small = choose(replace(given, memory=0.8e9), EVEN)
    assert small.depth < large.depth and small.memory_bytes <= 0.8e9
    with pytest.raises(UserError, match=r"GB, expected at most 0\.1 GB"):
        choose(replace(given, memory=1e8), EVEN)


def test_the_other_way_round_and_there_again():
    """The hours that a depth and its text take buy about the same tokens at that depth."""
    there = choose(replace(GIVEN, depth=4, different=2e6), EVEN)
    assert there.tokens == pytest.approx(4 * 2e6, rel=0.01)
    hours = there.seconds / 3600 / pace.IN_TIME
    back = choose(replace(GIVEN, depth=4, different=2e6, hours=hours), EVEN)
    assert back.tokens == pytest.approx(there.tokens, rel=0.02)
    assert choose(replace(GIVEN, different=2e6), EVEN).depth == scaling.deepest(8e6)


def test_no_text_is_gone_through_more_often_than_teaches():
    found = choose(replace(GIVEN, hours=1000.0, different=1e5, held=5e3), EVEN)
    assert 39 < found.passes <= 40 and found.seconds < 1000 * 3600
    assert found.worth < 1e5 * (1 + 15.4)


def remember(speed: Speed, kind: str = "gpt") -> None:
    """Leaves a measurement where the command line finds it."""
    path = calibration.kept_at(machine(gpus=True), "plan", kind, "float32", 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plan.asdict(speed)), "utf-8")


@pytest.fixture
def measured(monkeypatch, tmp_path):
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    remember(EVEN)


SET = ("precision=float32", "threads=1")


def test_the_command_says_everything(danlu, measured):
    said = danlu("plan", "hours=0.5", "tokens=2e6", *SET)
    assert said.code == 0, said.err
    for part in ("wide", "M weights", "vocabulary", "updates of", "learning rate", "passes over 2,000,000", "GB of",
                 "Kaplan et al. 2020", "Hoffmann et al. 2022", "Besiroglu et al. 2024", "more than guessing costs", "assumed and not measured",
                 "8 GPUs", "danlu pretrain gpt data=my.jsonl precision=float32 threads=1 hours=0.5"):  # fmt: skip
        assert part in said.out, part
    found = danlu("plan", "hours=0.5", "tokens=2e6", *SET, "--json").json
    assert found["plan"]["passes"] == pytest.approx(found["plan"]["tokens"] / 2e6)
    assert found["assumed"]["8"]["seconds"] <= 1800
    deep = danlu("plan", "depth=8", *SET, "--json").json["plan"]
    assert deep["tokens"] == pytest.approx(20 * deep["inside"], rel=0.01)
    settings = "data: two words.txt, learning_rates: {head: 0.001}, nesterov: true, hours: 2, precision: float32, threads: 1, out: new"
    Path("plan.yaml").write_text(f"{{recipe: gpt, {settings}}}", "utf-8")
    Path("two words.txt").write_text("".join(f"Line {n} is one of many.\n" for n in range(400)), "utf-8")
    command = danlu("plan", "plan.yaml", "hours=0.5", "--json").json["command"]
    again = danlu("show", *shlex.split(command)[2:], "--json").json
    assert shlex.split(command)[:3] == ["danlu", "pretrain", "gpt"] and "out=new" in command
    assert {key: again[key]["value"] for key in ("data", "learning_rates", "hours", "nesterov")} == {
        "data": "two words.txt", "learning_rates": {"head": 0.001}, "hours": 0.5, "nesterov": True}  # fmt: skip
    learned = Path("mine")
    learn([f"Line {n} is one of many." for n in range(400)], kind="bpe", size=300, say=print).save(learned)
    given = danlu("plan", "hours=0.5", "tokens=2e6", "tokenizer=mine", *SET, "--json").json["plan"]
    assert given["vocabulary"] == 64 * math.ceil(Tokenizer.load(learned).size / 64) < found["plan"]["vocabulary"]
    remember(EVEN, "bert")
    assert "no law of masked models" in danlu("plan", "bert", "depth=4", "tokens=1e6", *SET).out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "a plan needs hours=, depth=, tokens= or data="),
        (("hours=x",), "hours"),
        (("hours=1", "tokens=many"), "expected a number"),
        (("hours=1", "tokens=0"), "expected 1 to 1e15"),
        (("hours=1", "memory=-1"), "expected gigabytes above 0"),
        (("hours=1", "memory=0.1"), "expected at most 0.1 GB"),
        (("hours=1", "epochs=3"), "epochs= is what a plan finds"),
        (("hours=1", "data=x.jsonl", "tokens=5"), "both say how much text there is"),
        (("chat", "hours=1"), "a plan is of random weights"),
        (("hours=1", "widht=3"), "widht"),
    ],
)
def test_bad_input_is_one_clear_error(danlu, measured, words, said):
    found = danlu("plan", *words, *SET)
    assert found.code == 2 and said in found.err, found.err
    assert "Traceback" not in found.err


def test_a_training_with_hours_is_what_was_planned(danlu, measured, tmp_path):
    """depth, steps, batch and learning rate of the run are those of the plan on the same text, and the plan's reason is told."""
    planned = danlu("plan", f"data={TEXT}", "hours=0.004", "max_rows=300", *SET, "--json")
    assert planned.code == 0, planned.err
    found = planned.json["plan"]
    run = danlu("pretrain", "gpt", f"data={TEXT}", "hours=0.004", "max_rows=300", *SET, "baselines=false", "out=r")
    assert run.code == 0, run.err
    used = json.loads((tmp_path / "r" / "experiment.json").read_text("utf-8"))["used"]
    decided = re.search(r"of (\d+) planned updates", used["steps"]["origin"])  # not if the time was over before
    steps = int(decided[1]) if decided else used["steps"]["value"]
    assert (used["depth"]["value"], steps) == (found["depth"], found["steps"])
    assert used["batch_size"]["value"] * used["max_tokens"]["value"] == found["batch"]
    assert used["learning_rate"]["value"] == found["learning_rate"]
    assert "danlu plan" in used["depth"]["origin"] and (decided or "0.004 hours" in used["steps"]["origin"])
    assert danlu("resume", "r").code == 0


@pytest.mark.parametrize("slower", [1.15, 0.6])
def test_the_clock_decides_how_many_updates_fit(danlu, measured, monkeypatch, tmp_path, slower):
    """A machine slower or faster than planned: the learning rate comes to its end with the time, and a resume does not decide again."""
    words = (f"data={TEXT}", "hours=0.005", "max_rows=300", "depth=2", "batch_size=2", *SET)
    found = danlu("plan", *words, "--json").json["plan"]
    calls = [0.0]

    def clock(_: train.Clock) -> float:
        """Once an update, and at each checkpoint."""
        calls[0] += slower * 18 * pace.IN_TIME / found["steps"]
        return calls[0]

    monkeypatch.setattr(train.Clock, "__call__", clock)
    run = danlu("pretrain", "gpt", *words, "baselines=false", "out=r")
    assert run.code == 0, run.err
    folder = tmp_path / "r"
    steps = json.loads((folder / "experiment.json").read_text("utf-8"))["used"]["steps"]
    mark = math.floor(pace.MARK * found["steps"])
    seconds = float(re.fullmatch(rf"by the clock: {mark} of {found['steps']} planned updates took ([\d.]+) of 18.0 seconds", steps["origin"])[1])  # fmt: skip
    assert steps["value"] == pytest.approx(18 * pace.ON_TIME * mark / seconds, abs=2)
    assert (steps["value"] < found["steps"]) == (
        slower > 1
    ) and f"{steps['value']:,} updates in all, by the clock" in run.out
    assert json.loads((folder / "run.json").read_text())["stopped"] == f"all {steps['value']} steps"
    rates = [line["learning_rate"] for line in read_lines(folder / "metrics.jsonl") if "learning_rate" in line]
    assert len(rates) == steps["value"] and rates[-1] == pytest.approx(max(rates) / (0.5 * steps["value"]), rel=0.2)
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    shutil.rmtree(again / "model")
    kept = sorted(int(place.name.removeprefix("step-")) for place in again.glob("checkpoints/step-*"))
    since, *others = [step for step in kept if step >= mark]
    assert since < steps["value"]
    for step in others:
        shutil.rmtree(again / f"checkpoints/step-{step:08d}")
    calls[0] = 0
    (again / "run.json").write_text((again / "run.json").read_text().replace('"finished"', '"interrupted"'))
    assert danlu("resume", "again").code == 0
    assert (again / "model/model.safetensors").read_bytes() == (folder / "model/model.safetensors").read_bytes()


def test_rows_that_are_not_full_take_more_updates():
    full = choose(replace(GIVEN, hours=0.5, depth=3, batch=4096), EVEN)
    half = choose(replace(GIVEN, hours=0.5, depth=3, batch=4096, filled=0.5), EVEN)
    assert half.batch == full.batch and half.tokens == half.steps * 2048
    assert half.steps > 1.4 * full.steps  # each is half as long, but Muon's iteration is once an update
