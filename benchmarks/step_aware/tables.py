"""Tables of a file of results, and the lines of it that are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

from tabulate import tabulate

from ddsm_ext.intervals import Interval, mean_interval
from ddsm_ext.report.comparison import Line, best_constant, compare

GENERAL = "general"  # weights that serve every width, as the sandwich rule trains them
FULL = "full width"
Results = Mapping[str, Any]


def strategy_name(budget: float) -> str:
    """What the strategy of a budget of time is called."""
    return f"strategy {100 * budget:.0f} %"


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


def constant_beside(results: Results, features: str, budget: float) -> str | None:
    """The best constant width of no less time than a budget's strategy, by the general weights."""
    lines = lines_of(results, features)
    own = lines.get(strategy_name(budget))
    found = own and best_constant(own, list(lines.values()), "ms")
    return found.label if found else None


@dataclass(frozen=True)
class Claim:
    """A budget's strategy in some features, the constant width beside it and the full width.

    The full width has its general weights, the others these or their own.
    """

    own: Line
    constant: Line
    full: Line
    full_ms: float

    @property
    def differences(self) -> dict[str, Interval]:
        """How much higher, which is worse, the strategy is on the same seeds."""
        pairs = {"constant": self.constant, "full width": self.full}
        found = {name: compare(self.own, line) for name, line in pairs.items()}
        return {name: each.interval for name, each in found.items() if each}


def claim(
    results: Results, features: Sequence[str], feature: str, budget: float, *, tuned: bool
) -> Claim | None:
    """Return a claim; None where it is not measured yet.

    Args:
        results: of a training seed.
        features: all; tuned were the constants that are best in the first of them.
        feature: that of the scores.
        budget: of the strategy.
        tuned: whether strategy and constant have weights of their own.
    """
    lines = lines_of(results, feature, tuned=tuned)
    beside = constant_beside(results, features[0] if tuned else feature, budget)
    own, constant = lines.get(strategy_name(budget)), lines.get(beside or "")
    full = lines_of(results, feature).get(FULL)
    if own is None or constant is None or full is None:
        return None
    return Claim(own, constant, full, results["strategies"][FULL]["ms"])


def claims(content: Results, features: Sequence[str], budgets: Sequence[float]) -> str:
    """Each training seed's strategies beside constant widths and the full width, first with the
    general weights, then each with weights that are tuned for it."""
    head = ["weights", "seed", "features", "budget", "strategy", "time", "constant", "its time",
            "strategy - constant", "strategy - full width"]  # fmt: skip
    body = []
    for tuned, seed, feature, budget in product(
        (False, True), content["seeds"], features, sorted(budgets)
    ):
        found = claim(content["seeds"][seed], features, feature, budget, tuned=tuned)
        if found is not None:
            body.append([
                _weights(tuned), seed, _short(feature), _share(budget), f"{found.own.mean:.3f}",
                _share((found.own.ms or 0) / found.full_ms),
                f"{found.constant.label} {found.constant.mean:.3f}",
                _share((found.constant.ms or 0) / found.full_ms),
                *map(_verdict, found.differences.values()),
            ])  # fmt: skip
    return tabulate(body, head, tablefmt="pipe", disable_numparse=True)


def over_seeds(content: Results, features: Sequence[str], budgets: Sequence[float]) -> str:
    """The strategies' differences over the training seeds, with Student's t over these."""
    seeds = content["seeds"]
    head = ["weights", "beside", "features", "budget", *(f"seed {seed}" for seed in seeds), "mean"]
    body = []
    for tuned, other, feature, budget in product(
        (False, True), ("constant", "full width"), features, sorted(budgets)
    ):
        each = [claim(seeds[s], features, feature, budget, tuned=tuned) for s in seeds]
        values = [found.differences[other].mean for found in each if found]
        if len(values) == len(seeds) > 1:
            shown = [f"{value:+.3f}" for value in values]
            row = [_weights(tuned), other, _short(feature), _share(budget)]
            body.append([*row, *shown, _verdict(mean_interval(values))])
    return tabulate(body, head, tablefmt="pipe", disable_numparse=True)


def _weights(tuned: bool) -> str:
    return "tuned" if tuned else GENERAL


def _short(features: str) -> str:
    return features.partition(":")[0]


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _verdict(interval: Interval) -> str:
    """An interval, bold where it excludes 0."""
    shown = interval.above_zero or interval.below_zero
    return f"**{interval.text()}**" if interval.half_width and shown else interval.text()


def every(content: Results, features: Sequence[str], budgets: Sequence[float]) -> str:
    """Whatever was scored, of all training seeds."""
    head = ["seed", "weights", "widths", "time", "measured", "MACs"]
    for name in map(_short, features):
        head += [name, f"{name}, held out"]
    body = []
    for seed, results in content["seeds"].items():
        full = results.get("strategies", {}).get(FULL)
        taken = results.get("timing", {}).get("ms_per_image", {})
        for tuned in (False, True):
            by_features = [lines_of(results, feature, tuned=tuned) for feature in features]
            for name, line in by_features[0].items():
                measured = _share(taken[name] / taken[FULL]) if taken else ""
                cells = [
                    seed, _weights(tuned), name, _share((line.ms or 0) / full["ms"]), measured,
                    _share((line.macs or 0) / full["macs"]),
                ]  # fmt: skip
                for lines in by_features:
                    held_out = lines[name].more.get("frechet_held_out")
                    spread = mean_interval(list(lines[name].scores.values()))
                    cells += [spread.text(""), "" if held_out is None else f"{held_out:.3f}"]
                body.append(cells)
    return tabulate(body, head, tablefmt="pipe", disable_numparse=True)


def chosen_widths(content: Results, features: Sequence[str], budgets: Sequence[float]) -> str:
    """The widths of each strategy's steps, from noise to image."""
    body = []
    for seed, results in content["seeds"].items():
        for name, row in results.get("strategies", {}).items():
            if row["kind"] not in ("width", "full"):
                runs = [(width, len(list(steps))) for width, steps in groupby(row["steps"])]
                shown = ", ".join(f"{count} at {width:g}" for width, count in runs)
                share = _share(row["ms"] / results["strategies"][FULL]["ms"])
                body.append([seed, name, share, shown])
    head = ["seed", "strategy", "time", "steps at each width, from noise to image"]
    return tabulate(body, head, tablefmt="pipe", disable_numparse=True)


def times(content: Results, features: Sequence[str], budgets: Sequence[float]) -> str:
    """How long what took, in minutes."""
    body = []
    for seed, results in content["seeds"].items():
        seconds = results.get("seconds", {})
        body += [[seed, what, f"{each / 60:.1f}"] for what, each in seconds.items()]
        body.append([seed, "all", f"{sum(seconds.values()) / 60:.0f}"])
    return tabulate(body, ["seed", "what", "minutes"], tablefmt="pipe", disable_numparse=True)


TABLES: dict[str, Callable[[Results, Sequence[str], Sequence[float]], str]] = {
    "claims": claims,
    "seeds": over_seeds,
    "all": every,
    "widths": chosen_widths,
    "times": times,
}
