"""Strategies as a user names them: a strategy, its file, a width, or the run's own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ddsm_ext.run.config import RunConfig
from ddsm_ext.run.scoring import COMPARISONS
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.settings import Refusal


def own_strategy(run: Path) -> Path:
    """Return the file of a run's own strategy, there or not."""
    return run / "search" / "strategy.json"


def read_strategy(
    what: Strategy | float | str | Path | None, run: Path, config: RunConfig
) -> tuple[str, Strategy]:
    """Return a strategy and its name ("full width", "width 0.5", or the file's).

    Args:
        what: a strategy, a width, a strategy file, or None for the run's own (search/strategy.json)
            and, where none is, the full width.
        run: the run folder.
        config: its configuration; every width must be usable by its network.

    Raises:
        ValueError: the width or the file is refused.
        FileNotFoundError: there is no such file.
    """
    chosen = own_strategy(run)
    if what is None:
        what = chosen if chosen.exists() else 1.0
    try:
        width = float(what)  # type: ignore[arg-type]  # what is no number is refused here
    except (TypeError, ValueError):
        strategy = what if isinstance(what, Strategy) else Strategy.load(Path(str(what)))
        for used in strategy.widths:
            config.model.check_width(used)
        return "strategy" if isinstance(what, Strategy) else Path(str(what)).stem, strategy
    width = config.model.check_width(width)
    return "full width" if width == 1.0 else f"width {width:g}", Strategy.constant(width)


def strategy_to_tune_for(
    what: Strategy | float | str | Path | None, run: Path, config: RunConfig
) -> Strategy:
    """Return a strategy as `read_strategy` does, but no full width in place of one that is missing.

    Raises:
        ValueError: the run has none of its own, or what is named is refused.
        FileNotFoundError: there is no such file.
    """
    if what is None and not own_strategy(run).exists():
        raise Refusal(f"{run}: has no strategy; need ddsm search first, a file or a width")
    return read_strategy(what, run, config)[1]


def compared_strategies(run: Path, config: RunConfig) -> dict[str, Strategy]:
    """Return name -> strategy of all that a report compares: the full width, the run's own
    strategy, the narrower widths, and what its search wrote beside it."""
    full, own = read_strategy(1.0, run, config), read_strategy(None, run, config)
    widths = [w for w in config.model.widths if w != 1.0]
    narrow = [read_strategy(width, run, config) for width in widths]
    paths = {name: run / "search" / file for name, file in COMPARISONS.items()}
    others = [(name, Strategy.load(path)) for name, path in paths.items() if path.exists()]
    return dict([full, own, *narrow, *others])


def named_strategies(
    each: Iterable[Strategy | float | str | Path | None], run: Path, config: RunConfig
) -> dict[str, Strategy]:
    """Return name -> strategy; another one of a name that is taken has its file or a number too.

    Args:
        each: as `read_strategy` takes them.
        run: the run folder.
        config: its configuration.
    """
    named: dict[str, Strategy] = {}
    for what in each:
        name, strategy = read_strategy(what, run, config)
        if named.get(name, strategy) != strategy:
            more = len(named) if isinstance(what, Strategy) else what
            name = f"{name} ({more})"
        named[name] = strategy
    return named
