"""A catalogue imports nothing before it is asked."""

from __future__ import annotations

import sys

import pytest

from danlu.core.catalog import Catalog
from danlu.core.errors import UserError


THINGS = Catalog("thing", {"colour": "colorsys:rgb_to_hsv", "gone": "no_such_module:x", "bare": "json:nothing"})


def test_a_name_is_imported_when_it_is_asked_for() -> None:
    sys.modules.pop("colorsys", None)
    assert THINGS.names() == ["bare", "colour", "gone"]
    assert "colour" in THINGS and "color" not in THINGS
    assert "colorsys" not in sys.modules
    assert THINGS.get("colour")(0, 0, 0) == (0.0, 0.0, 0)


def test_an_unknown_name_lists_the_near_ones() -> None:
    with pytest.raises(UserError, match=r"unknown thing 'color'[\s\S]*did you mean 'colour'"):
        THINGS.get("color")


@pytest.mark.parametrize("name", ["gone", "bare"])
def test_what_cannot_be_loaded_names_its_place(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' is registered as .* which cannot be loaded"):
        THINGS.get(name)


def test_other_packages_add_names_and_never_replace_ours(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    package = tmp_path / "theirs-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[danlu.things]\ncolour = json:dumps\nfourth = json:loads\n")
    monkeypatch.syspath_prepend(tmp_path)
    things = Catalog("thing", {"colour": "colorsys:rgb_to_hsv"}, group="danlu.things")
    assert things.names() == ["colour", "fourth"]
    assert things.get("fourth")("[1]") == [1]
    assert things.get("colour").__name__ == "rgb_to_hsv"
