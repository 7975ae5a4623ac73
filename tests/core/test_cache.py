"""What is written lies there whole or not at all, and what others write beside it is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from danlu.core.cache import whole


def fill(target: Path, alone: bool = False) -> None:
    with whole(target, alone) as building:
        (building / "below").mkdir(parents=True)
        (building / "below" / "file").write_text("new")


def test_a_file_takes_the_place_of_the_old_one_and_an_error_leaves_that(tmp_path: Path) -> None:
    target = tmp_path / "file"
    for text in ("first", "second"):
        with whole(target) as building:
            building.write_text(text)
    with pytest.raises(UnicodeEncodeError), whole(target) as building:
        building.write_text("half \udcff", "utf-8")
    assert target.read_text() == "second" and list(tmp_path.iterdir()) == [target]


def test_a_folder_of_someone_else_is_never_replaced(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    fill(target)  # an empty one is
    (target / "below" / "file").write_text("theirs")
    with pytest.raises(OSError, match="not empty"):
        fill(target)
    assert (target / "below" / "file").read_text() == "theirs" and list(tmp_path.iterdir()) == [target]


def test_who_holds_the_lock_replaces_and_clears_what_a_killed_process_left(tmp_path: Path) -> None:
    target, others = tmp_path / "folder", tmp_path / ".building-folder-17"
    for folder in (target, others, tmp_path / ".building-folder", tmp_path / ".building-folder-replaced"):
        folder.mkdir()
        (folder / "old").touch()
    fill(target, alone=True)
    assert set(tmp_path.rglob("*")) == {target, target / "below", target / "below" / "file", others, others / "old"}
