"""Time compiled steps at every width that is a whole number of norm groups.

    python benchmarks/bench_width_curve.py --json benchmarks/results
    python benchmarks/bench_width_curve.py --network digits ch64 --batch 256

Prints a table a network and batch, the least work first, and writes each to its file as soon as it
is there; `python benchmarks/report.py` makes the plot and the page of tables of the file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from published.results import save_result

from ddsm_ext.bench import Setting, format_result, run_width_curve
from ddsm_ext.bench.table import format_worst
from ddsm_ext.bench.width_curve import group_widths, products_left
from ddsm_ext.machine import machine_info
from ddsm_ext.models import UNetConfig, preset

NETWORKS: dict[str, UNetConfig] = {
    "digits": preset("digits"),
    "ch64": replace(preset("digits"), ch=64),
    "cifar10": preset("cifar10"),
}
# Of a case that is cut short: the comparison, the warm-up and five rounds, each about 1.3 times as
# long as its products would take at the fastest rate.
_LEAST_PASSES = 7 * 1.3


@dataclass(frozen=True)
class Case:
    """A network at a batch size."""

    name: str
    batch: int

    def __str__(self) -> str:
        return f"{self.name}, batch {self.batch}"

    @property
    def products(self) -> int:
        """Of one step at each width."""
        config = NETWORKS[self.name]
        return self.batch * sum(products_left(config, width) for width in group_widths(config))


def main(words: Sequence[str]) -> int:
    """Measure, print, write."""
    arguments, start = parsed(words), time.monotonic()
    machine, setting = machine_info(), Setting(threads=arguments.threads)
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}")
    cases = [Case(name, batch) for name in arguments.network for batch in arguments.batch]
    with setting.active():
        rate = setting.measure_roof()["macs_per_s"]
    least_s = {case: _LEAST_PASSES * case.products / rate for case in cases}
    waiting, lines = sorted(least_s, key=lambda case: least_s[case]), []
    while waiting:
        left_s = 60 * arguments.limit_minutes - (time.monotonic() - start)
        spare_s = left_s - sum(least_s[case] for case in waiting)
        if spare_s < 0:
            case = waiting.pop()
            lines.append(f"{case}: left out, needs about {least_s[case] / 60:.1f} min more")
            continue
        # What a case does not need of its share is left to those with more work.
        share_s, case = spare_s / len(waiting), waiting.pop(0)
        limit_s = least_s[case] + share_s
        config = NETWORKS[case.name]
        result = run_width_curve(
            case.name, config, case.batch, arguments.rounds, setting=setting, limit_s=limit_s
        )
        print(f"\n{format_result('width-curve', result)}", flush=True)
        if arguments.json is not None:
            print(save_result(arguments.json, "width-curve", machine, result), flush=True)
        lines.append(format_worst(result))
    print("\n" + "\n".join([*lines, f"{(time.monotonic() - start) / 60:.1f} min"]))
    return 0


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64, 256], metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--rounds", type=int, default=31, help="at most; as time allows, 5 or more")
    parser.add_argument("--limit-minutes", type=float, default=10.0, metavar="M")
    parser.add_argument("--json", type=Path, metavar="DIR", help="folder for the results")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
