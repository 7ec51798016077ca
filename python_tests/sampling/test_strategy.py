from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.diffusion.schedule import make_schedule
from ddsm_ext.sampling.config import SamplerConfig
from ddsm_ext.sampling.levels import evaluations
from ddsm_ext.sampling.strategy import Strategy, as_strategy

THREE = Strategy(widths=(0.25, 0.5, 1.0), cuts=(-2.0, 3.0), origin={"kind": "test"})
widths = st.sampled_from([0.25, 0.5, 0.75, 1.0])

# DDSM, CIFAR-10: t 0-265 at 1.0, 266-428 at 0.75, 470-999 at 0.5; the 41 steps between hold what
# is left of the published counts, in a permuted order here.
PUBLISHED_COUNTS = {1.0: 274, 0.75: 181, 0.5: 534, 0.25: 11}
PUBLISHED_MMACS = {1.0: 6070.0, 0.75: 3420.0, 0.5: 1520.0, 0.25: 382.5}


def published_timestep_widths() -> list[float]:
    middle = [1.0] * 8 + [0.75] * 18 + [0.5] * 4 + [0.25] * 11
    middle = [middle[(i * 17) % 41] for i in range(41)]  # 17 and 41 are coprime: a permutation
    return [1.0] * 266 + [0.75] * 163 + middle + [0.5] * 530


@st.composite
def strategies(draw: st.DrawFn) -> Strategy:
    cuts = sorted(draw(st.sets(st.floats(-20, 20), max_size=6)))
    chosen = draw(st.lists(widths, min_size=len(cuts) + 1, max_size=len(cuts) + 1))
    return Strategy(tuple(chosen), tuple(cuts), {"note": "drawn"})


def test_published_cifar10_strategy() -> None:
    log_snrs = make_schedule(DiffusionConfig()).log_snrs.tolist()
    per_timestep = published_timestep_widths()
    strategy = Strategy.from_timestep_widths(per_timestep, log_snrs, {"paper": "2310.03337"})
    assert strategy.widths_for(log_snrs) == per_timestep
    assert Counter(strategy.widths_for(log_snrs)) == PUBLISHED_COUNTS
    # Table 1 of the paper: 12.14 GFLOPs a step fall to 6.20 (FLOPs are 2 x MACs).
    mmacs = sum(PUBLISHED_MMACS[w] for w in strategy.widths_for(log_snrs)) / len(log_snrs)
    assert 2e-3 * mmacs == pytest.approx(6.20, abs=0.005)
    assert strategy.width_at(math.inf) == 1.0
    assert strategy.width_at(-math.inf) == 0.5


def test_one_strategy_serves_every_step_count_and_schedule() -> None:
    linear = make_schedule(DiffusionConfig())
    cosine = make_schedule(DiffusionConfig(schedule="cosine", timesteps=400))
    strategy = Strategy((0.5, 0.75, 1.0), (linear.log_snr(469.5), linear.log_snr(265.5)))
    for schedule, steps in [(linear, 10), (linear, 100), (linear, None), (cosine, 37)]:
        plan = evaluations(schedule, SamplerConfig("ddim", steps), strategy)
        for step in plan:
            on_linear = np.interp(-step.log_snr, -linear.log_snrs.numpy(), range(1000))
            assert step.width == (0.5 if on_linear > 469.5 else 0.75 if on_linear > 265.5 else 1.0)
    shares = []
    for k in (100, 1000):
        steps = evaluations(linear, SamplerConfig("ddim", k), strategy)
        used = Counter(step.width for step in steps)
        shares.append([used[w] / k for w in (1, 0.5)])
    assert shares[0] == pytest.approx(shares[1], abs=0.02)


def test_a_cut_belongs_to_the_cleaner_side() -> None:
    assert THREE.width_at(-2.0) == 0.5
    assert THREE.width_at(math.nextafter(-2.0, -9.0)) == 0.25
    assert THREE.width_at(3.0) == 1.0
    assert THREE.width_at(math.nextafter(3.0, -9.0)) == 0.5


@given(strategy=strategies(), level=st.floats(-30, 30))
@settings(max_examples=200, deadline=None)
def test_width_at_equals_a_scan_of_the_segments(strategy: Strategy, level: float) -> None:
    edges = [-math.inf, *strategy.cuts, math.inf]
    held = [
        width
        for width, low, high in zip(strategy.widths, edges, edges[1:], strict=False)
        if low <= level < high
    ]
    assert held == [strategy.width_at(level)]


@given(per_timestep=st.lists(widths, min_size=1, max_size=60), data=st.data())
@settings(max_examples=200, deadline=None)
def test_timestep_widths_come_back(per_timestep: list[float], data: st.DataObject) -> None:
    count = len(per_timestep)
    levels = data.draw(st.sets(st.floats(-20, 20), min_size=count, max_size=count))
    log_snrs = sorted(levels, reverse=True)
    strategy = Strategy.from_timestep_widths(per_timestep, log_snrs)
    assert strategy.widths_for(log_snrs) == per_timestep
    changes = sum(a != b for a, b in itertools.pairwise(per_timestep))
    assert len(strategy.cuts) == changes  # runs are merged


def test_a_cut_lies_halfway_between_two_timesteps() -> None:
    strategy = Strategy.from_timestep_widths([1.0, 1.0, 0.5, 0.25], [5.0, 3.0, 2.0, -1.0])
    assert strategy == Strategy(widths=(0.25, 0.5, 1.0), cuts=(0.5, 2.5))


def test_neighbouring_floats_still_separate() -> None:
    high = 1.0
    low = math.nextafter(high, 0.0)
    strategy = Strategy.from_timestep_widths([1.0, 0.5], [high, low])
    assert strategy.widths_for([high, low]) == [1.0, 0.5]


@given(strategy=strategies())
@settings(max_examples=100, deadline=None)
def test_json_round_trip_is_exact(strategy: Strategy) -> None:
    back = Strategy.from_json(strategy.to_json(), "drawn")
    assert back == strategy
    assert dict(back.origin) == dict(strategy.origin)
    assert hash(back) == hash(strategy)


def test_json_layout() -> None:
    content = {
        "version": 1,
        "widths": [0.25, 0.5, 1.0],
        "cuts": [-2.0, 3.0],
        "origin": {"kind": "test"},
    }
    text = '{"cuts":[-2.0,3.0],"origin":{"kind":"test"},"version":1,"widths":[0.25,0.5,1.0]}'
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert json.loads(THREE.to_json()) == {**content, "digest": digest}


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "strategy.json"
    THREE.save(path)
    Strategy.constant(0.5).save(path)
    assert Strategy.load(path) == Strategy.constant(0.5)
    assert [p.name for p in tmp_path.iterdir()] == ["strategy.json"]


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    text = THREE.to_json().rstrip()
    path = tmp_path / "cut.json"
    for length in range(len(text)):
        path.write_text(text[:length])
        with pytest.raises(ValueError, match=r"cut\.json: is not JSON"):
            Strategy.load(path)


def changed(**values: object) -> str:
    """The file's text with other values, as one would write it by hand: without its digest."""
    content = {**json.loads(THREE.to_json()), "digest": "drop", **values}
    return json.dumps({k: v for k, v in content.items() if v != "drop"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON (Expecting value"),
        ("[1, 2]", "holds a JSON list; need a strategy with exactly version, widths, cuts, origin"),
        ("null", "holds a JSON NoneType"),
        ("[" * 200_000, "nested too deeply; need a strategy in JSON"),
        ("1" * 5000, "is not JSON"),
        (changed(cuts="drop"), "lacks 'cuts'"),
        (changed(version="drop"), "lacks 'version'"),
        (changed(width=1), "has an unknown key 'width'"),
        (changed(version=2), "version is 2; need 1, the one that this program reads"),
        (changed(version="1"), "version is '1'; need 1, the one that this program reads"),
        (changed(version=True), "version is True; need 1, the one that this program reads"),
        (
            changed(widths=[0.25, float("nan"), 1.0]),
            "is not JSON (NaN is not a JSON number); need a strategy",
        ),
        (changed(cuts=[-math.inf, 3.0]), "-Infinity is not a JSON number"),
        (changed(cuts=[3.0, -2.0]), "cut 3.0 is followed by -2.0; need strictly increasing cuts"),
        (changed(cuts=[3.0, 3.0]), "cut 3.0 is followed by 3.0"),
        (changed(cuts=[3.0]), "got 3 widths and 1 cuts; need one or more widths and one cut fewer"),
        (changed(widths=[]), "got 0 widths and 2 cuts"),
        (changed(widths=[0.25, 0.0, 1.0]), "width is 0; need 0 < width <= 1"),
        (changed(widths=[0.25, 1.5, 1.0]), "width is 1.5; need 0 < width <= 1"),
        (changed(widths=[0.25, "1", 1.0]), "width is '1'; need a number with 0 < width <= 1"),
        (changed(widths=[0.25, True, 1.0]), "width is True; need a number"),
        (changed(widths="0.5"), "widths is '0.5'; need a list of numbers"),
        (changed(widths={"a": 1}), "need a list of numbers"),
        (changed(cuts=None), "cuts is None; need a list of numbers"),
        (changed(origin=[]), "origin is (); need a mapping of JSON values"),
        (changed(cuts=[-2, 10**400]), "beyond the range of a float"),
        (THREE.to_json().replace("3.0", "1e999"), "'1e999' is beyond the range of a float"),
        (THREE.to_json().replace("{", '{"version": 1,', 1), "key 'version' is given twice"),
    ],
)
def test_bad_json(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="mine: ") as caught:
        Strategy.from_json(text, source="mine")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file; need a strategy"):
        Strategy.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="not a regular file; need a strategy"):
        Strategy.load(tmp_path)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="got 2 widths and 3 log-SNRs"):
        Strategy.from_timestep_widths([1.0, 1.0], [3.0, 2.0, 1.0])
    with pytest.raises(ValueError, match=r"log-SNR is 2\.0 at t = 0 and 2\.0 at t = 1"):
        Strategy.from_timestep_widths([1.0, 1.0], [2.0, 2.0])
    with pytest.raises(ValueError, match="log_snr is nan"):
        THREE.width_at(math.nan)
    with pytest.raises(TypeError, match="origin is not JSON"):
        Strategy((1.0,), origin={"path": Path("x")})
    with pytest.raises(TypeError, match="need a Strategy or a width"):
        as_strategy("0.5")  # type: ignore[arg-type]
