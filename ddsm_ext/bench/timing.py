"""The timing rules that every benchmark shares. No torch.

Candidates run interleaved, round by round and begun from another one each time, so that clock
speed, temperature and other load touch them alike; ratios are medians of the ratios within a round.
With one thread the clock is the thread's CPU time, which other processes do not lengthen by waiting
for a core (they still share caches and memory).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ddsm_ext.settings import Refusal

Key = TypeVar("Key", bound=Hashable)
_LEAST_ROUNDS = 5  # for a median with quartiles


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call in each round, in the rounds' order."""

    rounds_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.rounds_ms)

    @property
    def min_ms(self) -> float:
        """Fastest round."""
        return min(self.rounds_ms)

    @property
    def quartiles_ms(self) -> tuple[float, float]:
        """First and third quartile over the rounds."""
        if len(self.rounds_ms) == 1:
            return self.rounds_ms * 2
        first, _, third = statistics.quantiles(self.rounds_ms, n=4, method="inclusive")
        return first, third


def clock_of(threads: int) -> tuple[Callable[[], float], str]:
    """Return the clock in seconds for work on so many threads, and its name.

    Args:
        threads: 1 gives the calling thread's CPU time; more give wall time.
    """
    if threads == 1:
        return time.thread_time, "thread CPU time"
    return time.perf_counter, "wall time"


def interleaved(
    calls: Mapping[Key, Callable[[], object]],
    *,
    rounds: int,
    warmup_rounds: int = 1,
    min_sample_ms: float = 5.0,
    clock: Callable[[], float] = time.perf_counter,
    limit_s: float = math.inf,
    progress: Callable[[int, int], None] | None = None,
) -> dict[Key, Timing]:
    """Time calls against each other.

    Args:
        calls: name -> call without arguments that returns when its work is finished.
        rounds: measured rounds; each runs every call.
        warmup_rounds: rounds before them that are not measured; without one no call is repeated.
        min_sample_ms: a call shorter than this is repeated within a round until it lasts so long.
        clock: time in seconds.
        limit_s: no round is begun so many seconds (wall time) after the start; 5 in any case.
        progress: called with (rounds done, rounds in all); None for silence.

    Returns:
        name -> Timing of one call.

    Raises:
        ValueError: no calls, or no rounds.
    """
    if not calls or rounds < 1 or warmup_rounds < 0:
        raise Refusal(
            f"interleaved: {len(calls)} calls, {rounds} rounds, {warmup_rounds} to warm up; "
            "need at least 1 call, 1 round, 0 to warm up"
        )
    names = list(calls)
    repeats = dict.fromkeys(names, 1)
    times: dict[Key, list[float]] = {name: [] for name in names}
    start = time.monotonic()
    for number in range(warmup_rounds + rounds):
        late = time.monotonic() - start >= limit_s
        if late and number >= warmup_rounds + _LEAST_ROUNDS:
            break
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            sample_ms = _sample_ms(calls[name], repeats[name], clock)
            if number >= warmup_rounds:
                times[name].append(sample_ms / repeats[name])
            elif number == warmup_rounds - 1:
                one_ms = max(sample_ms / repeats[name], 1e-3)
                repeats[name] = max(1, math.ceil(min_sample_ms / one_ms))
        if progress is not None:
            progress(number + 1, warmup_rounds + rounds)
    return {name: Timing(tuple(values)) for name, values in times.items()}


def _sample_ms(call: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        call()
    return 1000.0 * (clock() - start)


def ratio(slower: Timing, faster: Timing) -> float:
    """Return the median over the rounds of slower / faster, above 1 where `faster` is faster."""
    pairs = zip(slower.rounds_ms, faster.rounds_ms, strict=True)
    return statistics.median(a / max(b, 1e-9) for a, b in pairs)


def time_columns(times: Mapping[str, Timing], images: int = 1) -> dict[str, float]:
    """Return `<candidate>_ms` and `_min_ms` an image, and each ratio_<candidate> to ours.

    Args:
        times: candidate -> time of a call, "ours" among them.
        images: images that a call works on; 1 gives the times of the call.
    """
    others = [name for name in times if name != "ours"]
    return {
        **{f"{name}_ms": timing.median_ms / images for name, timing in times.items()},
        **{f"{name}_min_ms": timing.min_ms / images for name, timing in times.items()},
        **{f"ratio_{name}": ratio(times[name], times["ours"]) for name in others},
    }
