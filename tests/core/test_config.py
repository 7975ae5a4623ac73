"""Settings: typed, in range, from text or from values, and an error says where a wrong one came from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import pytest

from danlu.core.config import Setting, build, flat, option
from danlu.core.errors import UserError
from danlu.experiment import Experiment


@dataclass(frozen=True)
class Speed:
    learning_rate: float = option(1e-3, "how fast", low=0.0, high=1.0)
    steps: int | None = option(None, "how long", low=1)
    schedule: str = option("cosine", "how it falls", choices=("cosine", "linear"))
    baselines: bool = option(True, "whether")


@dataclass(frozen=True)
class Place:
    data: str | None = option(None, "where")
    freeze: tuple[str, ...] = option((), "what stays")
    learning_rates: dict[str, float] | None = option(None, "how fast, by group")


@dataclass(frozen=True)
class Whole:
    speed: Speed = field(default_factory=Speed)
    place: Place = field(default_factory=Place)


def made(origin: str = "command line", **settings: Any) -> dict[str, Any]:
    return flat(build(Whole, {key: Setting(value, origin) for key, value in settings.items()}))


def test_defaults_stand_and_sections_are_frozen() -> None:
    whole = build(Whole, {})
    assert whole == Whole() and list(flat(whole))[:2] == ["learning_rate", "steps"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        whole.speed.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("steps", "12", 12),
        ("steps", "1_000", 1000),
        ("steps", "1e3", 1000),
        ("steps", 3.0, 3),
        ("steps", "9007199254740993", 9007199254740993),  # one more than a float can say
        ("steps", "none", None),
        ("steps", None, None),
        ("learning_rate", "2e-5", 2e-5),
        ("learning_rate", 1, 1.0),
        ("baselines", "no", False),
        ("baselines", "True", True),
        ("baselines", 0, False),
        ("data", 2024, "2024"),
        ("data", "a=b,c.jsonl", "a=b,c.jsonl"),
        ("freeze", "embeddings, layers.0-3", ("embeddings", "layers.0-3")),
        ("freeze", ["head"], ("head",)),
        ("freeze", "", ()),
        ("learning_rates", "head=1e-3, layers.0-3=1e-5", {"head": 1e-3, "layers.0-3": 1e-5}),
        ("learning_rates", {"head": 1}, {"head": 1.0}),
    ],
)
def test_values_are_read_as_their_type(key: str, value: Any, expected: Any) -> None:
    found = made(**{key: value})[key]
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("steps", "many", "expected a whole number"),
        ("steps", "2.5", "expected a whole number"),
        ("steps", 2.5, "expected a whole number"),
        ("steps", "inf", "expected a whole number"),
        ("steps", float("inf"), "expected a whole number"),
        ("steps", "nan", "expected a whole number"),
        ("steps", True, "expected a whole number"),
        ("steps", [1], "expected a whole number"),
        ("steps", 0, "expected a number at least 1"),
        ("learning_rate", "fast", "expected a number"),
        ("learning_rate", "nan", "expected a number"),
        ("learning_rate", "inf", "expected a number"),
        ("learning_rate", None, "expected a number"),
        ("learning_rate", 2, "expected a number between 0 and 1"),
        ("learning_rate", "-1", "expected a number between 0 and 1"),
        ("baselines", "maybe", "expected true or false"),
        ("baselines", 2, "expected true or false"),
        ("data", ["a"], "expected text"),
        ("data", True, "expected text"),
        ("schedule", "linaer", "expected one of cosine, linear"),
        ("freeze", 3, "expected text (several, separated by commas)"),
        ("freeze", {"head": 1}, "expected text (several, separated by commas)"),
        ("learning_rates", "head", "expected name=number pairs"),
        ("learning_rates", "head=fast", "expected name=number pairs"),
        ("learning_rates", 3, "expected name=number pairs"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(key: str, value: Any, says: str) -> None:
    with pytest.raises(UserError) as error:
        made("file my.yaml", **{key: value})
    assert error.value.message.startswith(f"{key}: found {value!r} (file my.yaml), {says}")


def test_an_unknown_key_suggests_the_right_one() -> None:
    with pytest.raises(UserError, match=r"unknown key 'learing_rate' \(command line\)") as error:
        made(learing_rate=1)
    assert error.value.fix.startswith("did you mean 'learning_rate'")
    with pytest.raises(UserError) as error:
        made(zzz=1)
    assert error.value.fix.startswith("known: ") and "schedule" in error.value.fix


def test_a_wrong_choice_suggests_the_right_one() -> None:
    with pytest.raises(UserError) as error:
        made(schedule="linaer")
    assert error.value.fix == "did you mean 'linear'?"


def test_what_was_written_reads_back() -> None:
    settings = made(steps="5", freeze="head", learning_rates="head=1e-3", data="x.jsonl")
    assert made(**settings) == settings


@pytest.mark.parametrize(
    ("key", "wrong", "right"),
    [
        ("seed", 2**63, 2**63 - 1),
        ("steps", 10**9 + 1, 10**9),
        ("beta1", 1, 0.99),
        ("beta2", "1.0", 0.0),
        ("learning_rates", "head=1e-3,layers.0=-1e-5", {"head": 0.0}),
    ],
)
def test_the_bounds_of_training(key: str, wrong: Any, right: Any) -> None:
    assert flat(build(Experiment, {key: Setting(right, "file")}))[key] == right
    with pytest.raises(UserError, match=f"^{key}: found .*, expected a number (at least|between) "):
        build(Experiment, {key: Setting(wrong, "file")})
