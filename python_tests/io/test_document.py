"""Versioned documents: one sentence that names the file for whatever is wrong with it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ddsm_ext.io.document import MAX_BYTES, Document
from ddsm_ext.settings import Refusal


@dataclass(frozen=True)
class Recipe(Document):
    """A document whose file is its fields."""

    what: ClassVar[str] = "recipe"

    name: str
    grams: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self._check("grams", all(g > 0 for g in self.grams), "amounts above 0")


@dataclass(frozen=True)
class Menu(Document):
    """A document whose file differs from its fields."""

    version: ClassVar[int] = 3
    what: ClassVar[str] = "menu"
    file_keys: ClassVar[tuple[str, ...]] = ("rows",)

    prices: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [{"dish": k, "price": v} for k, v in self.prices.items()]}

    @classmethod
    def from_dict(cls, values: Any) -> Menu:
        return cls({str(row["dish"]): float(row["price"]) for row in values["rows"]})


def test_round_trip_and_layout(tmp_path: Path) -> None:
    path = tmp_path / "new" / "recipe.json"
    Recipe("bread", (500.0, 7.5)).save(path)
    content = json.loads(path.read_text())
    text = '{"grams":[500.0,7.5],"name":"bread","version":1}'  # keys sorted, no spaces
    assert content.pop("digest") == hashlib.sha256(text.encode()).hexdigest()
    assert content == {"version": 1, "name": "bread", "grams": [500.0, 7.5]}
    assert Recipe.load(path) == Recipe("bread", (500.0, 7.5))
    Menu({"soup": 4.0}).save(path)
    content = json.loads(path.read_text())
    assert content.pop("digest")
    assert content == {"version": 3, "rows": [{"dish": "soup", "price": 4.0}]}
    assert Menu.load(path) == Menu({"soup": 4.0})
    assert [p.name for p in path.parent.iterdir()] == ["recipe.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 3, "ro', "is not JSON"),
        ("[1]", "holds a JSON list; need a menu with exactly version, rows"),
        ('{"version": 3}', "lacks 'rows'; need a menu with exactly version, rows"),
        ('{"rows": []}', "lacks 'version'"),
        ('{"version": 3, "rows": [], "row": 1}', "has an unknown key 'row'"),
        ('{"version": 3, "rows": [], "rows": []}', "key 'rows' is given twice"),
        ('{"version": 2, "rows": []}', "version is 2; need 3"),
        ('{"version": true, "rows": []}', "version is True; need 3"),
        ('{"version": 3, "rows": [{"dish": "soup"}]}', "a part lacks 'price'; need a menu"),
        ('{"version": 3, "rows": [{"dish": "a", "price": "x"}]}', "could not convert string"),
        ('{"version": 3, "rows": [7]}', "not subscriptable; need a menu"),
        ('{"version": 3, "rows": [{"dish": "a", "price": NaN}]}', "NaN is not a JSON number"),
        ('{"version": 3, "rows": [{"dish": "a", "price": 1e999}]}', "beyond the range of a float"),
        ('{"version": 3, "rows": [{"dish": "a", "price": 1' + "0" * 400 + "}]}", "too large"),
        ("[" * 100_000, "is nested too deeply; need a menu"),
    ],
)
def test_whatever_is_wrong_is_one_sentence_that_names_the_file(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "menu.json"
    path.write_text(text)
    with pytest.raises(Refusal, match=r"menu\.json: ") as caught:
        Menu.load(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_class_refuses_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text('{"version": 1, "name": "bread", "grams": [-1.0]}')
    with pytest.raises(Refusal, match=r"recipe\.json: Recipe: grams is .* need amounts above 0"):
        Recipe.load(path)
    path.write_text('{"version": 1, "name": "bread"}')
    with pytest.raises(Refusal, match="lacks 'grams'"):  # a file has every key
        Recipe.load(path)


def test_what_is_no_file_of_a_fair_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file; need a recipe"):
        Recipe.load(tmp_path / "none.json")
    with pytest.raises(Refusal, match="not a regular file; need a recipe"):
        Recipe.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refusal, match="not a regular file; need a recipe"):
        Recipe.load(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(b"\x80\x04\x95")
    with pytest.raises(Refusal, match="byte 0 is not UTF-8; need a recipe"):
        Recipe.load(tmp_path / "binary")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(Refusal, match=f"is over {MAX_BYTES} bytes; need a recipe"):
        Recipe.load(tmp_path / "huge")


def test_values_without_json_form_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="need finite numbers"):
        Menu({"soup": float("nan")}).save(tmp_path / "menu.json")
    assert not list(tmp_path.iterdir())


def test_every_change_of_a_saved_file_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    Recipe("bread", (500.0, 7.5)).save(path)
    text = path.read_text()
    for place, letter in enumerate(text):
        for other in "17x":
            changed = text[:place] + other + text[place + 1 :]
            path.write_text(changed)
            if letter.isspace() or letter == other:
                continue
            with pytest.raises(Refusal, match=r"recipe\.json: "):
                Recipe.load(path)


def test_a_file_may_be_laid_out_anew_or_written_by_hand(tmp_path: Path) -> None:
    path, bread = tmp_path / "recipe.json", Recipe("bread", (500.0, 7.5))
    bread.save(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items()))))
    assert Recipe.load(path) == bread
    content["name"] = "cake"
    path.write_text(json.dumps(content))
    with pytest.raises(Refusal, match=r"does not match its own SHA-256.* without its 'digest'"):
        Recipe.load(path)
    del content["digest"]
    path.write_text(json.dumps(content))
    assert Recipe.load(path).name == "cake"


def test_a_file_that_cannot_be_read_is_no_damaged_one(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "recipe.json"
    Recipe("bread").save(path)

    def broken(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("builtins.open", broken)
    with pytest.raises(OSError, match="need a recipe that can be read") as caught:
        Recipe.load(path)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))
