"""Tables of a file of results, and the lines of it that are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def difference(line: Line | None, other: Line | None) -> Interval | None:
    """How much higher, which is worse, a line is than another on the same seeds."""
    found = compare(line, other) if line and other else None
    return found.interval if found else None


def claims(content: Results, features: Sequence[str], budgets: Sequence[float]) -> str:
    """Each training seed's strategies beside constant widths and the full width, first with the
    general weights, then each with weights that are tuned for it."""
    head = ["weights", "seed", "features", "budget", "strategy", "time", "constant", "its time",
            "strategy - constant", "strategy - full width"]  # fmt: skip
    body = []
    for tuned in (False, True):
        for seed, results in content["seeds"].items():
            for feature in features:
                for budget in sorted(budgets):
                    row = _claim(results, feature, budget, tuned)
                    if row is not None:
                        weights = "tuned" if tuned else "general"
                        body.append([weights, seed, feature.partition(":")[0], *row])
    return tabulate(body, head, tablefmt="pipe", disable_numparse=True)


def _claim(results: Results, features: str, budget: float, tuned: bool) -> list[str] | None:
    """Cells: budget, strategy, time, constant, its time, the two differences."""
    general, lines = lines_of(results, features), lines_of(results, features, tuned=tuned)
    own = lines.get(strategy_name(budget))
    constant = lines.get(constant_beside(results, features, budget) or "")
    if own is None or constant is None or FULL not in general:
        return None
    full_ms = results["strategies"][FULL]["ms"]
    against = [difference(own, constant), difference(own, general[FULL])]
    return [
        f"{100 * budget:.0f} %",
        f"{own.mean:.3f}",
        f"{100 * (own.ms or 0) / full_ms:.0f} %",
        f"{constant.label} {constant.mean:.3f}",
        f"{100 * (constant.ms or 0) / full_ms:.0f} %",
        *("" if each is None else _verdict(each) for each in against),
    ]


def _verdict(interval: Interval) -> str:
    """An interval, bold where it excludes 0."""
    shown = interval.above_zero or interval.below_zero
    return f"**{interval.text()}**" if interval.half_width and shown else interval.text()


def every(content: Results, features: Sequence[str], budgets: Sequence[float]) -> str:
    """Whatever was scored, of all training seeds."""
    short = [name.partition(":")[0] for name in features]
    head = ["seed", "weights", "widths", "time", "measured", "MACs"]
    for name in short:
        head += [name, f"{name}, held out"]
    body = []
    for seed, results in content["seeds"].items():
        full = results.get("strategies", {}).get(FULL)
        times = results.get("timing", {}).get("ms_per_image", {})
        for tuned in (False, True):
            by_features = [lines_of(results, feature, tuned=tuned) for feature in features]
            for name, line in by_features[0].items():
                measured = f"{100 * times[name] / times[FULL]:.0f} %" if times else ""
                cells = [
                    seed, "tuned" if tuned else "general", name,
                    f"{100 * (line.ms or 0) / full['ms']:.0f} %", measured,
                    f"{100 * (line.macs or 0) / full['macs']:.0f} %",
                ]  # fmt: skip
                for lines in by_features:
                    held_out = lines[name].more.get("frechet_held_out")
                    spread = mean_interval(list(lines[name].scores.values()))
                    cells += [spread.text(""), "" if held_out is None else f"{held_out:.3f}"]
                body.append(cells)
    return tabulate(body, head, tablefmt="pipe", disable_numparse=True)


def over_seeds(content: Results, features: Sequence[str], budgets: Sequence[float]) -> str:
    """The strategies' differences over the training seeds, with Student's t over these."""
    head = ["weights", "features", "budget", *(f"seed {seed}" for seed in content["seeds"]), "mean"]
    body = []
    for tuned in (False, True):
        for feature in features:
            for against in ("constant", "full width"):
                for budget in sorted(budgets):
                    values = [
                        found.mean
                        for results in content["seeds"].values()
                        if (found := _against(results, feature, budget, tuned, against))
                    ]
                    if len(values) < len(content["seeds"]):
                        continue
                    weights = f"{'tuned' if tuned else 'general'}, beside {against}"
                    shown = [f"{value:+.3f}" for value in values]
                    mean = _verdict(mean_interval(values))
                    name = feature.partition(":")[0]
                    body.append([weights, name, f"{100 * budget:.0f} %", *shown, mean])
    return tabulate(body, head, tablefmt="pipe", disable_numparse=True)


def _against(
    results: Results, features: str, budget: float, tuned: bool, against: str
) -> Interval | None:
    lines = lines_of(results, features, tuned=tuned)
    general = lines_of(results, features)
    if against == "full width":
        other = general.get(FULL)
    else:
        other = lines.get(constant_beside(results, features, budget) or "")
    return difference(lines.get(strategy_name(budget)), other)


TABLES: dict[str, Callable[[Results, Sequence[str], Sequence[float]], str]] = {
    "claims": claims,
    "all": every,
    "seeds": over_seeds,
}
