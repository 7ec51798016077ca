"""The timing rules, on a clock that the test turns itself."""

from __future__ import annotations

import pytest

from ddsm_ext.bench.timing import Timing, clock_of, interleaved, ratio


class FakeClock:
    """Seconds that pass only when a call says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, *durations_ms: float):
        left = list(durations_ms)

        def work() -> None:
            self.order.append(name)
            self.now += (left.pop(0) if len(left) > 1 else left[0]) / 1000

        return work


def test_every_round_runs_every_call_begun_from_another_one() -> None:
    clock = FakeClock()
    calls = {name: clock.call(name, 10.0) for name in "abc"}
    times = interleaved(calls, rounds=3, clock=clock)
    assert ["".join(clock.order[i : i + 3]) for i in range(0, 12, 3)] == [
        "abc",
        "bca",
        "cab",
        "abc",
    ]
    assert all(len(timing.rounds_ms) == 3 for timing in times.values())
    assert times["b"].median_ms == pytest.approx(10.0)


def test_warm_up_rounds_are_not_measured() -> None:
    clock = FakeClock()
    times = interleaved(
        {"a": clock.call("a", 900.0, 50.0, 10.0, 30.0, 20.0)},
        rounds=3,
        warmup_rounds=2,
        clock=clock,
    )
    assert times["a"].rounds_ms == pytest.approx((10.0, 30.0, 20.0))
    assert times["a"].median_ms == pytest.approx(20.0)
    assert times["a"].min_ms == pytest.approx(10.0)


def test_short_calls_are_repeated_and_reported_each() -> None:
    clock = FakeClock()
    times = interleaved({"a": clock.call("a", 0.5)}, rounds=2, min_sample_ms=5.0, clock=clock)
    assert len(clock.order) == 1 + 2 * 10
    assert times["a"].rounds_ms == pytest.approx((0.5, 0.5))


def test_ratio_is_taken_within_rounds() -> None:
    """A machine that slows down threefold changes both times and no ratio."""
    slow, fast = Timing((10.0, 20.0, 30.0)), Timing((5.0, 10.0, 15.0))
    assert ratio(slow, fast) == pytest.approx(2.0)
    assert ratio(Timing((1.0, 9.0, 2.0)), Timing((1.0, 1.0, 1.0))) == pytest.approx(2.0)


def test_rounds_end_with_the_time_once_five_are_measured() -> None:
    for rounds, limit_s, measured in ((9, 0.0, 5), (3, 0.0, 3), (9, 1e6, 9)):
        clock = FakeClock()
        times = interleaved(
            {"a": clock.call("a", 10.0)}, rounds=rounds, limit_s=limit_s, clock=clock
        )
        assert len(times["a"].rounds_ms) == measured


def test_quartiles() -> None:
    """Of five sorted values the second and the fourth; between two a quarter of the way."""
    assert Timing((5.0, 1.0, 4.0, 2.0, 3.0)).quartiles_ms == (2.0, 4.0)
    assert Timing((1.0, 3.0)).quartiles_ms == (1.5, 2.5)
    assert Timing((7.0,)).quartiles_ms == (7.0, 7.0)


def test_one_thread_is_timed_in_its_own_cpu_time() -> None:
    import time

    assert clock_of(1) == (time.thread_time, "thread CPU time")
    assert clock_of(2) == (time.perf_counter, "wall time")
    clock, _ = clock_of(1)
    timing = interleaved(
        {"sleep": lambda: time.sleep(0.02)}, rounds=1, clock=clock, min_sample_ms=0
    )
    assert timing["sleep"].median_ms < 10


def test_progress_and_wrong_arguments() -> None:
    seen = []
    interleaved({"a": int}, rounds=2, min_sample_ms=0, progress=lambda *a: seen.append(a))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for arguments in ({"rounds": 0}, {"rounds": 1, "warmup_rounds": -1}):
        with pytest.raises(ValueError, match="need at least 1 call, 1 round"):
            interleaved({"a": int}, **arguments)
    with pytest.raises(ValueError, match="0 calls"):
        interleaved({}, rounds=1)
