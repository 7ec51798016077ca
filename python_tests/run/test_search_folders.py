"""The folder of a search: the one in use, that of another search, and how they change places."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ddsm_ext.run.search_folders import search_folder, take_place
from ddsm_ext.search.archive import VERSION

A, B = {"weights": "a", "seed": 0}, {"weights": "b", "seed": 0}


def begun(folder: Path, identity: dict[str, object]) -> Path:
    """A folder whose archive has a header, and files that say whose they are."""
    folder.mkdir()
    header = {"version": VERSION, "identity": identity}
    (folder / "archive.jsonl").write_text(json.dumps(header) + "\n")
    (folder / "strategy.json").write_text(str(identity["weights"]))
    return folder


def folders(run: Path) -> dict[str, str]:
    return {path.name: (path / "strategy.json").read_text() for path in sorted(run.iterdir())}


def test_the_first_search_and_the_same_one_again_use_search(tmp_path: Path) -> None:
    assert search_folder(tmp_path, A) == tmp_path / "search"
    begun(tmp_path / "search", A)
    assert search_folder(tmp_path, A) == tmp_path / "search"


def test_another_search_leaves_the_earlier_one_in_use_until_it_has_chosen(tmp_path: Path) -> None:
    begun(tmp_path / "search", A)
    folder = search_folder(tmp_path, B)
    begun(folder, B)
    assert folders(tmp_path) == {"search": "a", "search-00000": "b"}  # refused, or interrupted
    assert search_folder(tmp_path, B) == folder  # goes on there
    take_place(tmp_path, folder)
    assert folders(tmp_path) == {"search": "b", "search-00000": "a"}
    # and back
    take_place(tmp_path, search_folder(tmp_path, A))
    assert folders(tmp_path) == {"search": "a", "search-00000": "b"}
    assert search_folder(tmp_path, {"weights": "c"}) == tmp_path / "search-00001"


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_killed_while_they_change_places(tmp_path: Path, renames: int, monkeypatch) -> None:
    begun(tmp_path / "search", A)
    begun(search_folder(tmp_path, B), B)
    rename, done = Path.rename, []

    def killed(path: Path, target: Path) -> Path:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(path)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            take_place(tmp_path, tmp_path / "search-00000")
    take_place(tmp_path, search_folder(tmp_path, B))
    take_place(tmp_path, search_folder(tmp_path, A))
    found = folders(tmp_path)
    assert found.pop("search") == "a"
    assert list(found.values()) == ["b"]


def test_folders_of_the_users_own_are_left_alone(tmp_path: Path) -> None:
    begun(tmp_path / "search", A)
    for name in ("search-00000-best", "search-best", ".search-0.txt", "research-00001"):
        begun(tmp_path / name, B)
    assert search_folder(tmp_path, B) == tmp_path / "search-00000"
    assert len(folders(tmp_path)) == 5


def test_damaged_archives_are_nobodys(tmp_path: Path) -> None:
    begun(tmp_path / "search", A)
    (tmp_path / "search" / "archive.jsonl").write_text("{]\n{}\n")
    begun(tmp_path / "search-00000", B)
    (tmp_path / "search-00000" / "archive.jsonl").write_text("]\n\n")
    assert search_folder(tmp_path, B) == tmp_path / "search-00001"


def test_a_search_that_is_refused_after_a_kill_leaves_the_earlier_one_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path / "search", A)
    begun(search_folder(tmp_path, B), B)
    rename = Path.rename

    def once(path: Path, target: Path) -> Path:
        monkeypatch.undo()
        rename(path, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(KeyboardInterrupt):
        take_place(tmp_path, tmp_path / "search-00000")
    assert not (tmp_path / "search").exists()
    search_folder(tmp_path, {"weights": "c"})  # whose budget is refused then
    assert folders(tmp_path) == {"search": "a", "search-00000": "b"}


def test_a_search_that_was_killed_before_its_first_score_leaves_one_folder(tmp_path: Path) -> None:
    begun(tmp_path / "search", A)
    for _ in range(3):
        folder = search_folder(tmp_path, B)
        folder.mkdir(exist_ok=True)
        (folder / "cost_table.json").write_text("{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["search", "search-00000"]
