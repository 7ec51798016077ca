"""Settings of an earlier version compare as if it had known the later ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from ddsm_ext.run.config import RunConfig, preset_values
from ddsm_ext.settings import Settings, completed, plain


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
