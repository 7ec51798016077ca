"""Strategies as a user names them: a strategy, its file, a width, or the run's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ddsm_ext.graph.count import macs
from ddsm_ext.report.records import Steps
from ddsm_ext.run.config import RunConfig
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.history import COMPARISONS, STEPS_FILE, killed_between
from ddsm_ext.settings import LARGEST_INT, Refusal


def own_strategy(run: Path) -> Path:
    """Return the file of a run's own strategy, there or not."""
    return run / "search" / "strategy.json"


def save_steps(folder: Path, config: RunConfig, strategy: Strategy) -> None:
    """Write steps.json of a search: timestep, log-SNR, width and gain of each sampler step."""
    # imported here: they load torch, which a refusal does not need
    from ddsm_ext.diffusion.prediction import prediction_of
    from ddsm_ext.diffusion.schedule import make_schedule
    from ddsm_ext.sampling.levels import evaluations, prediction_gains

    schedule, sampler = make_schedule(config.diffusion), config.sampler
    steps = evaluations(schedule, sampler, strategy)
    Steps(
        timesteps=tuple(step.t for step in steps),
        log_snr=tuple(step.log_snr for step in steps),
        widths=tuple(step.width for step in steps),
        gains=tuple(prediction_gains(schedule, sampler, prediction_of(config.diffusion))),
        macs={f"{width:g}": macs(config.model, width) for width in config.model.widths},
    ).save(folder / STEPS_FILE)


def keep_strategy(run: Path, config: RunConfig, strategy: Strategy) -> None:
    """Write the strategy that a run is tuned for, and its steps, unless it has one of its own."""
    file = own_strategy(run)
    if not file.exists():
        strategy.save(file)
    if not (file.parent / STEPS_FILE).exists():  # it was killed between the two
        save_steps(file.parent, config, Strategy.load(file))


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
        if killed := killed_between(run):
            raise Refusal(f"{run}: {killed}")
    try:
        width = float(what)  # type: ignore[arg-type]  # what is no number is refused here
    except (TypeError, ValueError):
        strategy = what if isinstance(what, Strategy) else _load(Path(str(what)))
        for used in strategy.widths:
            config.model.check_width(used)
        return "strategy" if isinstance(what, Strategy) else Path(str(what)).stem, strategy
    width = config.model.check_width(width)
    return _width_name(width), Strategy.constant(width)


def _load(path: Path) -> Strategy:
    """Read a strategy file; a result of the official search says how it becomes one."""
    from ddsm_ext.compat.official_strategy import parse_official_strategy, read_text

    try:
        return Strategy.load(path)
    except Refusal as refused:
        reason = refused
    try:
        parse_official_strategy(read_text(path), index=0)
    except (Refusal, OSError):
        raise reason from None
    raise Refusal(
        f"{path}: is a search result of the official code; need the strategy file that "
        f"`ddsm convert` makes of it"
    )


def _width_name(width: float) -> str:
    return "full width" if width == 1.0 else f"width {width:g}"


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

    The names of `compared_strategies` are taken by what they are of there.

    Args:
        each: as `read_strategy` takes them.
        run: the run folder.
        config: its configuration.
    """
    taken, named = compared_strategies(run, config), dict[str, Strategy]()
    for what in each:
        name, strategy = read_strategy(what, run, config)
        if taken.get(name, strategy) != strategy:
            more = len(named) if isinstance(what, Strategy) else what
            name = f"{name} ({more})"
        taken[name] = named[name] = strategy
    return named


def kind_of(name: str, strategy: Strategy, run: Path) -> str:
    """Return what a score is of, one of KINDS.

    It goes by the name, as a searched strategy may turn out constant, and by the run's files, as
    any file may have any name.
    """
    width, *others = strategy.widths
    if not others and name == _width_name(width):
        return "full" if width == 1.0 else "width"
    files = {"strategy": own_strategy(run)}
    files |= {label: run / "search" / file for label, file in COMPARISONS.items()}
    known = name in files and files[name].exists() and Strategy.load(files[name]) == strategy
    return name if known else "other"


@dataclass(frozen=True)
class ScorePlan:
    """What is to be scored, on which seeds.

    Args:
        named: name -> strategy.
        kinds: name -> what its scores are of, one of KINDS.
        seeds: of the first score of each; the next one's follow after the last.
        ranges: scores of each.
    """

    named: dict[str, Strategy]
    kinds: dict[str, str]
    seeds: list[int]
    ranges: int

    @property
    def images_each(self) -> int:
        """Samples of a strategy."""
        return len(self.seeds) * self.ranges


def plan_scores(
    run: Path,
    config: RunConfig,
    strategies: Iterable[Strategy | float | str | Path | None] | None = None,
    seeds: Iterable[int] | None = None,
    ranges: int | None = None,
) -> ScorePlan:
    """Return what `Run.evaluate` scores; see there for the arguments.

    Raises:
        ValueError: a strategy is refused, there is none, or there are less than two seeds.
        FileNotFoundError: a strategy's file is missing.
    """
    settings = config.eval
    if strategies is None:
        named = compared_strategies(run, config)
    else:
        named = named_strategies(strategies, run, config)
    count = (settings.ranges if seeds is None else 1) if ranges is None else ranges
    if seeds is None:
        seeds = range(settings.first_seed, settings.first_seed + settings.images)
    seeds = list(seeds)
    if not named or len(seeds) < 2 or count < 1:
        raise Refusal(
            f"evaluate: {len(named)} strategies, {len(seeds)} seeds, {count} ranges; need at "
            "least 1, 2 and 1"
        )
    last = max(seeds) + (count - 1) * (max(seeds) + 1 - min(seeds))
    if last > LARGEST_INT:
        raise Refusal(f"evaluate: {count} ranges of seeds end at {last}; need seeds below 2^63")
    kinds = {name: kind_of(name, strategy, run) for name, strategy in named.items()}
    return ScorePlan(named, kinds, seeds, count)
