"""Settings of an earlier version compare as if it had known the later ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest

from ddsm_ext.run.config import RunConfig, preset_values
from ddsm_ext.settings import LARGEST_INT, Settings, completed, is_number, plain, shown


@dataclass(frozen=True)
class Now(Settings):
    kind: str
    widths: tuple[float, ...] = (1.0,)
    later: int | None = None


@pytest.mark.parametrize(
    ("saved", "same"),
    [
        ({"kind": "a", "widths": [1.0], "later": None}, True),
        ({"kind": "a"}, True),
        ({"kind": "a", "widths": [1]}, True),
        ({"kind": "b"}, False),
        ({"kind": "a", "later": 3}, False),
        ({"widths": [1.0]}, False),  # kind has no default
        ({"kind": "a", "unknown": 1}, False),
        (None, False),
        ([], False),
    ],
)
def test_a_missing_key_counts_as_its_default(saved: Any, same: bool) -> None:
    now = Now("a")
    assert (completed(saved, now) == plain(now)) is same
    assert (
        completed({"x": saved, "y": 1}, {"x": now, "y": 1}) == plain({"x": now, "y": 1})
    ) is same


def test_what_is_set_now_differs_from_a_missing_key() -> None:
    assert completed({"kind": "a"}, Now("a", later=3)) != plain(Now("a", later=3))


def test_values_beside_settings_stay_as_they_are() -> None:
    saved = {"weights": "abc", "more": [1], "sampler": {"kind": "a"}}
    found = completed(saved, {"weights": "xyz", "sampler": Now("b")})
    assert found == {**saved, "sampler": {"kind": "a", "widths": [1.0], "later": None}}
    assert completed("text", {"sampler": Now("b")}) == "text"


def test_each_setting_of_a_run_may_be_missing() -> None:
    """Whatever setting comes next: a configuration without it is the one with its default."""
    config = RunConfig.from_dict({"model": preset_values("digits")["model"]})
    whole = config.to_dict()
    dropped = 0
    for section, values in whole.items():
        for key in values:
            if (section, key) == ("model", "image_size"):
                continue
            rest = {name: value for name, value in values.items() if name != key}
            found = completed({**whole, section: rest}, config)
            default = type(getattr(config, section)).__dataclass_fields__[key].default
            if values[key] == plain_value(default):
                assert found == whole, (section, key)
                dropped += 1
    assert dropped > 50


def plain_value(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    "value",
    [10**5000, -(10**5000), "x" * 10**6, [[[[[[[[1]]]]]]]], list(range(10**6)), {1: "x" * 999}],
    ids=shown,
)
def test_any_value_is_shown_in_a_few_words(value: Any) -> None:
    assert len(shown(value)) < 200


def test_values_of_settings_are_shown_as_they_are() -> None:
    for value in (7, -0.5, "cifar10", None, True, (1, 2, 2, 2), (1.0, 0.75, 0.5, 0.25), 2**63):
        assert shown(value) == repr(value)


def test_lists_in_lists_are_shown_though_repr_has_an_end() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    assert shown(value) == "[[[[...]]]]"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, -(10**400), True, "1"])
def test_what_no_float_holds_is_no_number(value: Any) -> None:
    assert not is_number(value, -math.inf)
    assert is_number(10**300, 0)


@dataclass(frozen=True)
class Counted(Settings):
    count: Any

    def __post_init__(self) -> None:
        self._check_int("count", 2, 9)


@pytest.mark.parametrize(
    ("count", "need"),
    [(1, "an int >= 2"), (10, "an int <= 9"), (2.0, "an int >= 2"), (True, "an int >= 2"),
     (LARGEST_INT + 1, "an int <= 9"), (10**5000, "an int <= 9")],
    ids=shown,
)  # fmt: skip
def test_integers_have_bounds(count: Any, need: str) -> None:
    assert Counted(5).count == 5
    with pytest.raises(ValueError, match=f"^Counted: count is .*; need {need}$"):
        Counted(count)
