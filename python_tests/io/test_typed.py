"""JSON values as annotations say: what is taken, and what is refused in which words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest

from ddsm_ext.io.typed import Count, Label, Positive, Row, TypedDocument, Width, Within, read


@dataclass(frozen=True)
class Inner(Row):
    x: float
    note: Label = ""


@dataclass(frozen=True)
class Open(Row):
    partial: ClassVar[bool] = True

    x: float


@dataclass(frozen=True)
class Outer(TypedDocument):
    what: ClassVar[str] = "test"

    rows: tuple[Inner, ...]
    kind: Literal["a", "b"]
    size: Count | None = None
    costs: dict[Width, Positive] | None = None


@pytest.mark.parametrize(
    ("kind", "value", "found"),
    [
        (float, 3, 3),
        (float, -1e100, -1e100),
        (int, 2**53, 2**53),
        (str, "0.5", "0.5"),
        (bool, False, False),
        (float | None, None, None),
        (str | float | bool | None, True, True),
        (str | float | bool | None, 0.5, 0.5),
        (tuple[int, ...], [], ()),
        (tuple[int, str], [1, "x"], (1, "x")),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (dict[Width, int], {"0.5": 1}, {0.5: 1}),
        (Inner, {"x": 1}, Inner(1)),
        (Open, {"x": 1, "y": []}, Open(1)),
        (Any, [{}], [{}]),
    ],
)
def test_what_is_of_the_type_is_taken(kind: Any, value: Any, found: Any) -> None:
    assert read(kind, value, "v") == found


@pytest.mark.parametrize(
    ("kind", "value", "sentence"),
    [
        (float, "0.5", "v is '0.5'; need a number"),
        (float, True, "v is True; need a number"),
        (float, None, "v is None; need a number"),
        (float, float("nan"), "v is nan; need a number from -1e+100 to 1e+100"),
        (float, 10**400, "v is an int of 1329 bits; need a number"),
        (float, 1e101, "v is 1e+101; need a number from -1e+100 to 1e+100"),
        (int, 1.0, "v is 1.0; need a whole number"),
        (int, True, "v is True; need a whole number"),
        (int, 2**53 + 1, "need a whole number from -9.0072e+15 to 9.0072e+15"),
        (Count, -1, "v is -1; need a whole number of 0 or more"),
        (Width, 0, "v is 0; need a number of 1e-100 to 1"),
        (Width, 1.5, "v is 1.5; need a number of 1e-100 to 1"),
        (Label, "x" * 5001, "need text of 0 to 5000 characters"),
        (Annotated[tuple[int, ...], Within(1)], [], "v is []; need a list of 1 or more values"),
        (tuple[int, ...], {"0": 1}, "v is {'0': 1}; need a list"),
        (tuple[int, ...], "12", "v is '12'; need a list"),
        (tuple[int, ...], [1, "2"], "v[1] is '2'; need a whole number"),
        (tuple[int, str], [1], "v is [1]; need a list of 2"),
        (dict[str, int], [], "v is []; need an object"),
        (dict[str, int], {"a": None}, "v['a'] is None; need a whole number"),
        (dict[Width, int], {"nan": 1}, "v['nan'] is nan; need a number"),
        (dict[Width, int], {"half": 1}, "v['half'] is 'half'; need a number"),
        (float | None, "x", "v is 'x'; need a number"),
        (str | float | None, [], "v is []; need text or a number or null"),
        (Literal["a", "b"], "c", "v is 'c'; need one of 'a', 'b'"),
        (Literal["a", "b"], ["a"], "v is ['a']; need one of 'a', 'b'"),
        (Inner, [], "v is []; need an object"),
        (Inner, {}, "v lacks 'x'; need x, note"),
        (Inner, {"x": 1, "xx": 2}, "v has an unknown key 'xx'; did you mean x?"),
        (Outer, {"rows": [{"x": "1"}], "kind": "a"}, "v.rows[0].x is '1'; need a number"),
    ],
)
def test_what_is_not_is_refused_in_words(kind: Any, value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"need|unknown key") as refused:
        read(kind, value, "v")
    assert sentence in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_document_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    document = Outer((Inner(0.1), Inner(2, "two")), "b", None, {0.5: 3, 1.0: 1e-3})
    document.save(path)
    assert Outer.load(path) == document
    assert '"size"' not in path.read_text()  # what may be missing and is not known


def test_a_file_of_an_earlier_version_lacks_what_came_later(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"rows": [], "kind": "a"}')
    assert Outer.load(path) == Outer((), "a")


def test_a_changed_digit_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    Outer((Inner(0.25),), "a").save(path)
    path.write_text(path.read_text().replace("0.25", "0.75"))
    with pytest.raises(ValueError, match=r"a\.json: does not match its own SHA-256"):
        Outer.load(path)
