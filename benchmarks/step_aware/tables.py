"""Tables of a file of results, and the lines of it that are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

from tabulate import tabulate

from ddsm_ext.intervals import Interval, mean_interval
from ddsm_ext.report.comparison import Line, best_constant, compare
from step_aware.presets import Preset, Target, short

GENERAL = "general"  # weights that serve every width, as the sandwich rule trains them
FULL = "full width"
Results = Mapping[str, Any]


def lines_of(results: Results, features: str, *, tuned: bool = False) -> dict[str, Line]:
    """Return name -> line, in some features, of the general weights or of those tuned for it."""
    scores = results.get("scores", {})
    if tuned:
        rows = {name: each[name] for name, each in scores.items() if name in each}
    else:
        rows = scores.get(GENERAL, {})
    return {
        name: _line(name, ranges, features, results["strategies"][name])
        for name, ranges in rows.items()
        if ranges
    }


def _line(name: str, ranges: Sequence[Results], features: str, about: Results) -> Line:
    each = [scores[features] for scores in ranges]
    keys = [key for key in ("frechet_held_out", "kid") if key in each[0]]
    return Line(
        label=name,
        kind=about["kind"],
        scores={str(number): row["frechet"] for number, row in enumerate(each)},
        more={key: sum(row[key] for row in each) / len(each) for key in keys},
        images=each[0]["images"],
        macs=about["macs"],
        ms=about["ms"],
    )


def constant_beside(results: Results, target: Target) -> str | None:
    """The best constant width of no less time than a target's strategy, by the general weights and
    in the features that its search ranked by."""
    lines = lines_of(results, target.features)
    own = lines.get(target.name)
    found = own and best_constant(own, list(lines.values()), "ms")
    return found.label if found else None


@dataclass(frozen=True)
class Claim:
    """A target's strategy in some features, the constant width beside it and the full width.

    The full width has its general weights, the others these or their own.
    """

    own: Line
    constant: Line
    full: Line

    @property
    def differences(self) -> dict[str, Interval]:
        """How much higher, which is worse, the strategy is on the same seeds."""
        pairs = {"constant": self.constant, FULL: self.full}
        found = {name: compare(self.own, line) for name, line in pairs.items()}
        return {name: each.interval for name, each in found.items() if each}


def claim(results: Results, target: Target, features: str, *, tuned: bool) -> Claim | None:
    """Return a claim; None where it is not measured yet.

    Args:
        results: of a training seed.
        target: of the strategy.
        features: that score it.
        tuned: whether strategy and constant have weights of their own.
    """
    lines = lines_of(results, features, tuned=tuned)
    own, constant = lines.get(target.name), lines.get(constant_beside(results, target) or "")
    full = lines_of(results, features).get(FULL)
    return Claim(own, constant, full) if own and constant and full else None


def claims(content: Results, preset: Preset) -> str:
    """Each training seed's strategies beside constant widths and the full width, first with the
    general weights, then each with weights that are tuned for it."""
    head = ["weights", "seed", "strategy", "time", "constant", "its time"]
    for features in preset.features:
        head += [short(features), "- constant", "- full width"]
    body = []
    for tuned, seed, target in product((False, True), content["seeds"], preset.targets):
        results = content["seeds"][seed]
        found = [claim(results, target, each, tuned=tuned) for each in preset.features]
        if found[0] is None:
            continue
        times = [percent(cost_share(results, x.label)) for x in (found[0].own, found[0].constant)]
        row = [_weights(tuned), seed, target.name, times[0], found[0].constant.label, times[1]]
        for each in found:
            assert each is not None
            row += [f"{each.own.mean:.3g}", *map(_verdict, each.differences.values())]
        body.append(row)
    return _table(body, head)


def over_seeds(content: Results, preset: Preset) -> str:
    """The strategies' differences over the training seeds, with Student's t over these."""
    seeds = content["seeds"]
    head = ["weights", "strategy", "beside", "features", *(f"seed {s}" for s in seeds), "mean"]
    body = []
    for tuned, target, other, features in product(
        (False, True), preset.targets, ("constant", FULL), preset.features
    ):
        each = [claim(seeds[seed], target, features, tuned=tuned) for seed in seeds]
        values = [found.differences[other].mean for found in each if found]
        if len(values) == len(seeds) > 1:
            shown = [f"{value:+.3f}" for value in values]
            row = [_weights(tuned), target.name, other, short(features)]
            body.append([*row, *shown, _verdict(mean_interval(values))])
    return _table(body, head)


def _table(body: list[list[str]], head: list[str]) -> str:
    return tabulate(body, head, tablefmt="pipe", disable_numparse=True)


def cost_share(results: Results, name: str, unit: str = "ms") -> float:
    """What an image costs, as a share of the full width's."""
    rows = results["strategies"]
    return rows[name][unit] / rows[FULL][unit]


def percent(share: float) -> str:
    """Return the text of a share."""
    return f"{100 * share:.0f} %"


def _weights(tuned: bool) -> str:
    return "tuned" if tuned else GENERAL


def _verdict(interval: Interval) -> str:
    """An interval, bold where it excludes 0."""
    shown = interval.above_zero or interval.below_zero
    return f"**{interval.text()}**" if interval.half_width and shown else interval.text()


def every(content: Results, preset: Preset) -> str:
    """Whatever was scored, of all training seeds."""
    head = ["seed", "weights", "widths", "time", "measured", "MACs"]
    for name in map(short, preset.features):
        head += [name, f"{name}, held out"]
    body = []
    for (seed, results), tuned in product(content["seeds"].items(), (False, True)):
        taken = results.get("timing", {}).get("ms_per_image", {})
        by_features = [lines_of(results, features, tuned=tuned) for features in preset.features]
        for name in by_features[0]:
            measured = percent(taken[name] / taken[FULL]) if taken else ""
            time, macs = (percent(cost_share(results, name, unit)) for unit in ("ms", "macs"))
            row = [seed, _weights(tuned), name, time, measured, macs]
            for lines in by_features:
                held_out = lines[name].more.get("frechet_held_out")
                spread = mean_interval(list(lines[name].scores.values()))
                row += [spread.text(""), "" if held_out is None else f"{held_out:.4g}"]
            body.append(row)
    return _table(body, head)


def chosen_widths(content: Results, preset: Preset) -> str:
    """The widths of each strategy's steps, from noise to image."""
    body = []
    for seed, results in content["seeds"].items():
        for name, row in results.get("strategies", {}).items():
            if row["kind"] not in ("width", "full"):
                runs = [(width, len(list(steps))) for width, steps in groupby(row["steps"])]
                shown = ", ".join(f"{count} at {width:g}" for width, count in runs)
                body.append([seed, name, percent(cost_share(results, name)), shown])
    return _table(body, ["seed", "strategy", "time", "steps at each width, from noise to image"])


def times(content: Results, preset: Preset) -> str:
    """How long what took, in minutes."""
    body = []
    for seed, results in content["seeds"].items():
        seconds = results.get("seconds", {})
        body += [[seed, what, f"{each / 60:.1f}"] for what, each in seconds.items()]
        body.append([seed, "all", f"{sum(seconds.values()) / 60:.0f}"])
    return _table(body, ["seed", "what", "minutes"])


TABLES: dict[str, Callable[[Results, Preset], str]] = {
    "claims": claims,
    "seeds": over_seeds,
    "all": every,
    "widths": chosen_widths,
    "times": times,
}
