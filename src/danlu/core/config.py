"""Strict, typed, frozen configuration with the origin of every value.

An experiment is a dataclass of section dataclasses. The leaf names are unique across sections, so that one flat grammar
(`learning_rate=1e-3`) serves the YAML file, the command line and Python alike.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from danlu.core.errors import UserError, nearest


T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One value and where it came from: `default`, `derived: why`, `recipe NAME`, `file PATH` or `command line`."""

    value: Any
    origin: str


def option(
    default: Any,
    about: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
    tasks: tuple[str, ...] = (),
) -> Any:
    """A field of a section: its default, one line about it, and what it may be. A default of None means *derived*.

    low, high: smallest and largest number. below: it must be smaller than this. For name=number pairs they bound the numbers.
    tasks: the only ones that read it; none named means all of them do.
    """
    bounds = {"low": low, "high": high, "below": below}
    return dataclasses.field(default=default, metadata={"about": about, "choices": choices, "tasks": tasks, **bounds})


def leaves(experiment: type) -> Iterator[tuple[str, str, dataclasses.Field[Any], Any]]:
    """(section, key, field, type) of every setting, in the order they are written."""
    for section, kind in get_type_hints(experiment).items():
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            yield section, field.name, field, hints[field.name]


def build(experiment: type[T], settings: Mapping[str, Setting]) -> T:
    """Flat settings -> the frozen experiment. Unknown keys, wrong types and values out of range are errors."""
    known = {key: (section, field, kind) for section, key, field, kind in leaves(experiment)}
    sections: dict[str, dict[str, Any]] = {section: {} for section in get_type_hints(experiment)}
    for key, setting in settings.items():
        if key not in known:
            raise UserError(f"unknown key {key!r} ({setting.origin})", nearest(key, known))
        section, field, kind = known[key]
        sections[section][key] = check(key, setting, field, kind)
    kinds = get_type_hints(experiment)
    return experiment(**{section: kinds[section](**values) for section, values in sections.items()})


def flat(experiment: Any) -> dict[str, Any]:
    """The experiment as one flat mapping: what a YAML file of it holds."""
    return {key: getattr(getattr(experiment, section), key) for section, key, _, _ in leaves(type(experiment))}


def check(key: str, setting: Setting, field: dataclasses.Field[Any], kind: Any) -> Any:
    """The value as its declared type. Text is read as the type (command line); other values must already be of it."""
    value = setting.value
    optional = get_origin(kind) in (types.UnionType, typing.Union) and type(None) in get_args(kind)
    if optional:
        if value is None or value in ("none", "None", "null"):
            return None
        kind = next(part for part in get_args(kind) if part is not type(None))
    try:
        converted = convert(value, kind)
    except (ValueError, TypeError, OverflowError):
        raise UserError(
            f"{key}: found {value!r} ({setting.origin}), expected {describe(kind)}",
            way_out(key, field),
        ) from None
    choices = field.metadata.get("choices")
    if choices and converted not in choices:
        raise UserError(
            f"{key}: found {value!r} ({setting.origin}), expected one of {', '.join(choices)}",
            nearest(str(value), choices),
        )
    low, high, below = (field.metadata.get(name) for name in ("low", "high", "below"))
    several = converted.values() if isinstance(converted, dict) else converted
    for number in several if isinstance(converted, (dict, tuple)) else [converted]:
        too_large = (high is not None and number > high) or (below is not None and number >= below)
        if too_large or (low is not None and number < low):
            least, most, less = (
                f"{b:g}" if isinstance(b, float) else f"{b:,}" if b is not None else "" for b in (low, high, below)
            )
            bounds = f"between {least or 0} and {most}" if most else f"at least {least or 0}"
            bounds += f" and below {less}" if less else ""
            raise UserError(
                f"{key}: found {value!r} ({setting.origin}), expected a number {bounds}",
                way_out(key, field),
            )
    return converted


def way_out(key: str, field: dataclasses.Field[Any]) -> str:
    """What to do about a value that cannot be, and what the setting means."""
    return f"give such a value, or leave {key}= out ({key}: {field.metadata.get('about', '')})"


def convert(value: Any, kind: Any) -> Any:
    """A value read as `kind`; ValueError, TypeError or OverflowError when it is none."""
    origin = get_origin(kind)
    if origin is tuple:
        if not isinstance(value, (str, list, tuple)):
            raise TypeError
        parts = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        return tuple(convert(part, get_args(kind)[0]) for part in parts)
    if origin is dict:
        if isinstance(value, str):  # layers.0=1e-5,head=1e-3
            value = dict(
                part.split("=", 1) if "=" in part else part.split(":", 1) for part in value.split(",") if part.strip()
            )
        return {str(name).strip(): convert(inner, get_args(kind)[1]) for name, inner in dict(value).items()}
    if kind is bool:
        if isinstance(value, bool):
            return value
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if str(value).lower() not in words:
            raise ValueError
        return words[str(value).lower()]
    if kind is int:
        if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
            raise ValueError
        if isinstance(value, str) and not value.strip().lstrip("+-").replace("_", "").isdecimal():  # 1e3
            value = float(value)
            if value != int(value):
                raise ValueError
        return int(value)
    if kind is float:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        if number != number or number in (float("inf"), float("-inf")):
            raise ValueError
        return number
    if kind is str:
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise ValueError
        return str(value)
    if kind is Any:
        return value
    raise TypeError(kind)


def describe(kind: Any) -> str:
    """The type in words, for an error."""
    if get_origin(kind) is tuple:
        return f"{describe(get_args(kind)[0])} (several, separated by commas)"
    if get_origin(kind) is dict:
        return "name=number pairs, separated by commas"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, str(kind))
