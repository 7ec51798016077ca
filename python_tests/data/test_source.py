"""What a folder or archive holds: which files are its images, and what is said of the others."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ddsm_ext.data.images import png_bytes, save_png
from ddsm_ext.data.source import PassedOver, images_from_folder, list_source, read_images


def write(root: Path, *names: str, start: int = 0) -> None:
    for level, name in enumerate(names, start):
        save_png(root / name, np.full((4, 4, 3), level, np.uint8))


def zipped(root: Path) -> Path:
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(root))
    return path


def found(root: Path) -> list[tuple[str, str | None, int]]:
    return [(i.name, i.label, int(i.pixels[0, 0, 0])) for i in images_from_folder(root)]


def test_linked_folders_are_entered(tmp_path: Path) -> None:
    write(tmp_path, "data/cat/0.png", "else/dog/1.png", "else/dog/old/2.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "else" / "dog")
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    for root in (tmp_path / "data", tmp_path / "linked"):
        assert found(root) == [
            ("cat/0.png", "cat", 0),
            ("dog/1.png", "dog", 1),
            ("dog/old/2.png", "dog", 2),
        ]


def test_links_that_go_round_end(tmp_path: Path) -> None:
    write(tmp_path, "a/0.png", "b/1.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "other").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "other").symlink_to(tmp_path / "a")
    (tmp_path / "b" / "nowhere").symlink_to(tmp_path / "b" / "nowhere")
    listing = list_source(tmp_path)
    assert listing.images == ["a/0.png", "a/other/1.png", "b/1.png", "b/other/0.png"]
    assert listing.others == Counter({"": 2})  # the link to itself, seen by both roads


def test_a_folder_that_cannot_be_read_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a/0.png", "b/1.png")
    scandir = os.scandir

    def fails(path: Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fails)
    with pytest.raises(PermissionError, match=r"Permission denied: .*b"):
        list_source(tmp_path)


def test_other_files_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b/c.png", ".hidden/d.png", "__MACOSX/e.png")
    for name in ("x.avif", "b/y.AVIF", "notes.txt", "README", ".DS_Store", "dataset.json"):
        (tmp_path / name).write_bytes(b"{}")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for path, count in ((tmp_path, 2), (zipped(tmp_path), 1)):  # the ZIP has no link
        listing = list_source(path)
        assert listing.images == ["a.png", "b/c.png"]
        assert listing.others == Counter({".avif": 2, ".txt": 1, "": count})
        (note,) = listing.notes()
        assert note.startswith(f"{3 + count} of {5 + count} files are of other kinds")
        for said in ("2 .avif", "1 .txt", f"{count} without suffix"):
            assert said in note
    write(tmp_path / "only", "a.png")
    assert not list(list_source(tmp_path / "only").notes())


def test_a_source_without_images_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(3):
        (tmp_path / "a" / f"{number}.heic").write_bytes(b"x")
    message = r"holds no image \(3 \.heic\); need \.png, .*\.bmp, .* or \.ppm files"
    with pytest.raises(FileNotFoundError, match=message):
        list_source(tmp_path / "a")
    with pytest.raises(ValueError, match=message):
        list_source(zipped(tmp_path / "a"))


SEEDS = [f"seed-{seed:06d}.png" for seed in range(3)]


@pytest.mark.parametrize(
    ("names", "grids"),
    [
        ([*SEEDS, "grid.png", "samples.json"], ["grid.png"]),
        ([f"a/{name}" for name in [*SEEDS, "grid.png"]] + ["grid.png"], ["a/grid.png"]),
        (["cat.png", "grid.png"], []),
        (["step-000500-w1.0.png", "step-1000000-w0.25.png", "x.png"], None),
        (["step-1.png", "w1.0.png"], []),
        (["compare/row-0.png", "compare/index.json", "x.png"], ["compare/row-0.png"]),
        (["compare/row-0.png", "x.png"], []),
    ],
)
def test_grids_of_samples_are_no_images(
    tmp_path: Path, names: list[str], grids: list[str] | None
) -> None:
    write(tmp_path / "s", *names)
    grids = [name for name in names if name.startswith("step-")] if grids is None else grids
    expected = sorted(n for n in names if n not in grids and not n.endswith(".json"))
    for path in (tmp_path / "s", zipped(tmp_path / "s")):
        assert list_source(path).images == expected
        assert not grids or not list_source(path).others


def test_names_with_backslashes_in_a_folder(tmp_path: Path) -> None:
    """As unpacked from a ZIP of Windows by a program that does not know them."""
    write(tmp_path, "train\\cat\\0.png", "train\\dog\\1.png")
    assert found(tmp_path) == [("train/cat/0.png", "cat", 0), ("train/dog/1.png", "dog", 1)]


def test_damaged_images_are_passed_over_up_to_a_number(tmp_path: Path) -> None:
    root = tmp_path / "d"
    write(root, *(f"{number}.png" for number in range(6)))
    (root / "1.png").write_bytes(png_bytes(np.zeros((4, 4, 3), np.uint8))[:40])
    (root / "4.png").write_bytes(b"")
    names = frozenset(list_source(root).images)
    for path in (root, zipped(root)):
        passed_over = PassedOver(2)
        read = [name for name, _ in read_images(path, names, passed_over=passed_over)]
        assert read == ["0.png", "2.png", "3.png", "5.png"]
        (note,) = passed_over.notes()
        assert note.startswith("2 damaged images are passed over: ")
        assert "1.png: " in note
        assert "4.png: " in note
        for most, first in ((0, "1"), (1, "4")):
            message = rf"{first}\.png: .*need .*, or data\.skip_damaged above {most}"
            with pytest.raises(ValueError, match=message):
                list(read_images(path, names, passed_over=PassedOver(most)))


def test_a_damaged_entry_of_a_zip_is_a_damaged_image(tmp_path: Path) -> None:
    write(tmp_path / "d", "0.png", "1.png")
    path = zipped(tmp_path / "d")
    data = bytearray(path.read_bytes())
    data[data.find(b"IDAT") + 5] ^= 1
    path.write_bytes(data)
    passed_over = PassedOver(1)
    names = frozenset(("0.png", "1.png"))
    assert [n for n, _ in read_images(path, names, passed_over=passed_over)] == ["1.png"]
    assert "0.png" in passed_over.sentences[0]


def test_a_file_that_cannot_be_read_is_not_damaged(tmp_path: Path) -> None:
    write(tmp_path, "0.png")
    (tmp_path / "1.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"1\.png: no such file"):
        list(read_images(tmp_path, {"0.png", "1.png"}, passed_over=PassedOver(5)))


@pytest.mark.parametrize(
    "content",
    [b'{"a":1}\n{"a":2}\n', b"", '{"labels":1}'.encode("utf-16"), b'{"a":1,"a":2}', b'{"a":NaN}'],
)
def test_a_dataset_json_of_something_else_is_said(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, "cat/0.png")
    (tmp_path / "dataset.json").write_bytes(content)
    listing = list_source(tmp_path)
    assert listing.images == ["cat/0.png"]
    (note,) = listing.notes()
    assert note.startswith("dataset.json: ")
    assert note.endswith("; it is passed over")


def test_a_maze_of_links_is_refused_in_time(tmp_path: Path) -> None:
    folders = [tmp_path / f"d{index}" for index in range(12)]
    for folder in folders:
        folder.mkdir()
        save_png(folder / "0.png", np.zeros((4, 4, 1), np.uint8))
    for folder in folders:
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    with pytest.raises(ValueError, match="links lead to it in more than 100 ways; need fewer"):
        list_source(tmp_path)
