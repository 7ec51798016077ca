"""Composes a search: costs of the widths, sensitivity, the quality, and what is written."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddsm_ext.data.pixels import from_data
from ddsm_ext.diffusion.noise import generator, normal
from ddsm_ext.diffusion.prediction import network_input, prediction_of
from ddsm_ext.diffusion.schedule import add_noise
from ddsm_ext.graph.count import macs
from ddsm_ext.io.files import one_line
from ddsm_ext.report.records import Costs, DecodingCost, WidthCost
from ddsm_ext.run.compose import Sampler, counter, weights_digest
from ddsm_ext.run.costs import conditions, macs_table, measure_ms
from ddsm_ext.run.sampled_quality import BLOCKS, SampledQuality
from ddsm_ext.run.scoring import Scorer
from ddsm_ext.run.search_folders import search_folder, search_folders, take_place
from ddsm_ext.run.strategies import save_steps
from ddsm_ext.sampling.denoiser import Evaluation
from ddsm_ext.sampling.levels import evaluations, prediction_gains
from ddsm_ext.search.archive import ARCHIVE_FILE
from ddsm_ext.search.config import SearchConfig
from ddsm_ext.search.cost import CostTable, StepCost, check_budget
from ddsm_ext.search.engine import SearchProgress, search, search_identity
from ddsm_ext.search.front import BUDGET_TOLERANCE, Front, FrontPoint
from ddsm_ext.search.genome import StrategySpace
from ddsm_ext.search.history import COMPARISONS
from ddsm_ext.search.pool import budget_genome
from ddsm_ext.search.sensitivity import LEVELS, Sensitivity, measure_sensitivity
from ddsm_ext.settings import plain
from ddsm_ext.training.batches import check_labels
from ddsm_ext.width import find_width

log = logging.getLogger(__name__)

SENSITIVITY_STREAM = 2  # sampling itself draws from the streams 0 and 1
# Seeds of a search's samples begin here: a strategy is chosen on other noise than it is scored on.
SEARCH_FIRST_SEED = 1_000_000
COST_TABLE_FILE = "cost_table.json"


def measure_costs(run: Path, sampler: Sampler, widths: Sequence[float]) -> CostTable:
    """Return the ms of one image and step at each width, as the sampler runs them.

    A cost is the network's step and the sampler's own work on it, which is timed by itself, with a
    network that returns its input; beside them is the decoding of an image of latents. Times
    measured before for this run, under the same conditions, are taken again: a search in ms
    continues only with the costs that it began with.

    Raises:
        ValueError: the file of these times is damaged.
    """
    config, device, batch = sampler.config, sampler.device, sampler.batch_size
    x = normal(range(batch), 0, sampler.shape, device=device).to(sampler.dtype)  # [N, C, H, W]
    x = x.contiguous(memory_format=torch.channels_last)
    t = torch.zeros(batch, dtype=torch.int64, device=device)  # [N]
    labels = (t,) if config.model.label_count else ()

    @torch.inference_mode()
    def run_step(width: float) -> None:
        sampler.network(x, t, width, *labels)
        sampler.finish()

    where = conditions(
        batch=batch,
        dtype=config.sampler.dtype,
        device=device,
        network=f"ch {config.model.ch}, image {config.model.image_size}",
    )
    where["sampler"] = config.sampler.kind  # whose own work is part of each cost
    if config.codec.of_latents:
        where["decoder"] = f"{config.codec.digest}, {config.codec.batch_size} images"
    own, *others = (folder / COST_TABLE_FILE for folder in search_folders(run))
    for path in (own, *others):
        if not path.exists():
            continue
        try:
            known = CostTable.load(path)
        except ValueError as error:
            if path == own:  # that of the search in use, which goes on with its own costs alone
                raise
            log.warning("%s; passed over", one_line(error))
            continue
        with contextlib.suppress(ValueError):
            known.check_conditions(where)
            if set(known.costs) >= set(widths) and known.overhead:
                return known
    told = counter(sampler.progress, "timing each width", "round")
    table = measure_ms(run_step, widths, batch=batch, conditions=where, progress=told)
    overhead = sampler.overhead_ms()
    costs = {width: ms + overhead for width, ms in table.costs.items()}
    measured = replace(table, costs=costs, overhead=overhead, decoding=sampler.decode_ms())
    if not own.exists():  # a budget that is refused is tried again with the same costs
        measured.save(own)
    return measured


def save_costs(folder: Path, in_macs: CostTable, ms: CostTable) -> None:
    """Write costs.json of a search: MACs and ms by width.

    A row's "realised_bound" is the most that time saved over MACs saved can be at that width: what
    it is where every step runs at it.
    """
    full_macs, full_ms = in_macs.costs[1.0], ms.costs[1.0]
    rows = []
    for width, cost in in_macs.costs.items():
        saved = 1 - cost / full_macs
        bound = (1 - ms.costs[width] / full_ms) / saved if saved > 0 else None
        rows.append(WidthCost(width, cost, ms.costs[width], bound))
    where = ms.conditions
    decoding = DecodingCost(in_macs.decoding, ms.decoding) if in_macs.decoding else None
    costs = Costs(tuple(rows), where["batch"], where["threads"], ms.overhead, decoding)
    costs.save(folder / "costs.json")


def sensitivity_of(
    run: Path,
    sampler: Sampler,
    dataset: Any,
    weights: str,
    widths: Sequence[float],
    folder: Path | None = None,
) -> Sensitivity:
    """Return the error of each width at noise levels spread over the schedule.

    It depends on weights, images and schedule alone, so that one file serves every sampler, number
    of steps, budget and device. What was measured before for this run is taken again, and kept with
    further widths in sensitivity.json.

    Args:
        run: the run folder.
        sampler: its network.
        dataset: its images, of which `eval.sensitivity_images` are drawn by seed.
        weights: digest of the network's weights.
        widths: widths to measure.
        folder: of the search, which keeps it; None takes search/.
    """
    config, schedule = sampler.config, sampler.schedule
    last = schedule.timesteps - 1
    timesteps = sorted({round(last * i / (LEVELS - 1)) for i in range(LEVELS)})
    basis = {
        "weights": weights,
        "model": plain(config.model),
        "data": {**plain(config.data), "digest": dataset.digest},
        "diffusion": plain(config.diffusion),
        **({"codec": config.codec.identity} if config.codec.of_latents else {}),
        "images": config.eval.sensitivity_images,
        "first_seed": SEARCH_FIRST_SEED,
        "order": "permuted",  # earlier files took the first images of the data set
        "timesteps": timesteps,
    }
    path, known = (folder or run / "search") / "sensitivity.json", None
    before = path if path.exists() else run / "search" / path.name
    if before.exists():
        try:
            found = Sensitivity.load(before)
            known = found if found.conditions == basis else None
        except ValueError as error:
            log.warning("%s; measuring it again", one_line(error))
    missing = [w for w in widths if known is None or find_width(known.widths, w) is None]
    if not missing and known is not None:
        if before != path:
            known.save(path)
        return known
    order = np.random.default_rng(SEARCH_FIRST_SEED).permutation(len(dataset))
    chosen = np.sort(order[: config.eval.sensitivity_images])
    drawn = dataset.batch(torch.from_numpy(chosen), None, generator(SEARCH_FIRST_SEED))
    images = from_data(drawn, sampler.device)  # [N, C, H, W]
    labels = None
    check_labels(dataset, config.model.label_count, "search")
    if config.model.label_count:
        labels = torch.from_numpy(dataset.labels[chosen]).to(sampler.device)  # [N]
    seeds = range(SEARCH_FIRST_SEED, SEARCH_FIRST_SEED + len(images))

    def noise(level: int) -> Tensor:
        return normal(seeds, level, sampler.shape, stream=SENSITIVITY_STREAM, device=sampler.device)

    row, channels = prediction_of(config.diffusion), config.model.image_channels

    def network(x: Tensor, t: Tensor, width: float, *y: Tensor) -> Tensor:
        x, time = network_input(x, t, schedule, row)
        prediction: Tensor = sampler.network(x.to(sampler.dtype), time, width, *y)
        return prediction[:, :channels]  # without learned variances

    measured = measure_sensitivity(
        network,
        images,
        add_noise=lambda x0, noise, t: add_noise(x0, noise, t, schedule),
        timesteps=timesteps,
        log_snrs=[float(schedule.log_snr(t)) for t in timesteps],
        widths=missing,
        noise=noise,
        labels=labels,
        conditions=basis,
        progress=counter(sampler.progress, "sensitivity", "level"),
    )
    whole = measured if known is None else known.joined(measured)
    whole.save(path)
    return whole


def search_run(
    run: Path, sampler: Sampler, dataset: Any, scorer: Scorer | None, settings: SearchConfig
) -> Front:
    """Search a run's strategies, write every file of its search folder, return the front.

    Args:
        run: the run folder, whose lock is held.
        sampler: its network.
        dataset: its images.
        scorer: what scores samples; None searches the proxy alone.
        settings: of the search.
    """
    if scorer is None and settings.method != "proxy":
        log.warning("no features score the samples: the front is that of the proxy alone")
        settings = replace(settings, method="proxy")
    quality = None
    if scorer is not None and settings.method != "proxy":
        quality = SampledQuality(
            scorer, SEARCH_FIRST_SEED, settings.fewest_samples, settings.race_samples
        )
    identity = _identity(sampler, scorer, quality)
    steps = evaluations(sampler.schedule, sampler.config.sampler)
    log_snrs = [step.log_snr for step in steps]
    weak = sampler.config.sampler.guidance_widths
    in_macs = macs_table(sampler.config.model, settings.widths)
    in_macs = replace(in_macs, decoding=float(sampler.config.codec.decode_macs))
    ms = measure_costs(run, sampler, sorted({*settings.widths, *weak}, reverse=True))
    searched = ms.of_widths(settings.widths)
    if settings.cost == "ms":
        settings = replace(settings, widths=_useful_widths(searched, settings.widths))
    table = in_macs if settings.cost == "macs" else searched
    weak_macs = partial(macs, sampler.config.model)
    in_ms = settings.cost == "ms"
    weak_cost = ms.cost_of if in_ms else weak_macs
    runs, fixed = _guidance_runs(steps, weak_cost if weak else None, ms.overhead if in_ms else 0.0)
    fixed += table.decoding
    space = StrategySpace(log_snrs, settings.widths, settings.segments, runs)
    cost = StepCost(table.costs, space, fixed)
    check_budget(settings, cost, table.decoding)
    folder = run / "search"
    if quality is not None:
        known = search_identity(settings, table, log_snrs, identity, runs, fixed)
        folder = search_folder(run, known)
    kept = (ARCHIVE_FILE, COST_TABLE_FILE)
    if not all((folder / name).exists() for name in kept):
        ms.save(folder / COST_TABLE_FILE)  # else a search in ms there goes on with its own
    weights, widths = identity["weights"], settings.widths
    measured = sensitivity_of(run, sampler, dataset, weights, widths, folder)
    row = prediction_of(sampler.config.diffusion)
    gains = prediction_gains(sampler.schedule, sampler.config.sampler, row)
    errors = measured.for_steps(log_snrs, widths, gains)
    told = counter(sampler.progress, "search", "sample")

    def tell(state: SearchProgress) -> None:
        volume = "" if state.hypervolume is None else f", hypervolume {state.hypervolume:.4f}"
        remark = f"{state.stage}, {state.generation + 1}/{state.generations}{volume}"
        told(state.samples, state.expected_samples, remark)

    front = search(
        settings,
        cost_table=table,
        log_snrs=log_snrs,
        run_dir=run,
        folder=folder.name,
        quality=quality,
        errors=errors,
        identity=identity,
        quality_name=quality.name if quality else "sampler-weighted error, no samples",
        runs=runs,
        fixed_cost=fixed,
        progress=tell,
    )
    assert front.chosen is not None
    limit = settings.loss_limit
    if limit is not None and front.chosen.greatest_loss > limit:
        log.warning(
            "the chosen strategy kept within a loss of %g where it was chosen, but loses up to "
            "%.3g on new seeds; search.final_samples more, or a smaller limit, would show it",
            limit, front.chosen.greatest_loss,
        )  # fmt: skip
    save_costs(folder, in_macs, ms)
    save_steps(folder, sampler.config, front.chosen.strategy)
    _save_comparisons(folder, cost, front.chosen, space.by_level(log_snrs, errors))
    take_place(run, folder)
    return front


def _guidance_runs(
    steps: Sequence[Evaluation], cost_of: Callable[[float], float] | None, overhead: float
) -> tuple[list[int], float]:
    """How often the network runs at a strategy's width in each step, and what else an image costs.

    Args:
        steps: of the sampler.
        cost_of: width -> cost of a weak model of its own widths; None: it has the strategy's.
        overhead: the sampler's own work in each cost, which a guided step has once.
    """
    weak = [step.weak_width for step in steps if step.weak_width is not None]
    twice = len(weak) * overhead
    if cost_of is None:
        return [len(step.widths) for step in steps], -twice
    return [1] * len(steps), sum(map(cost_of, weak)) - twice


def _useful_widths(ms: CostTable, widths: Sequence[float]) -> tuple[float, ...]:
    """The widths that save time on this machine, with a word about those that do not."""
    useful = tuple(ms.useful_widths())
    for width in widths:
        if find_width(useful, width) is None:
            log.info(
                "width %g takes %.3g ms, as much as a wider one: not searched", width,
                ms.costs[width],
            )  # fmt: skip
    return useful


def _save_comparisons(
    folder: Path,
    cost: StepCost,
    chosen: FrontPoint,
    level_errors: np.ndarray,
) -> None:
    """Write the strategies beside which the chosen one is scored: its reverse, and the best of the
    proxy with two segments at no more cost."""
    space = cost.space
    genome = space.from_strategy(chosen.strategy)
    limit = chosen.cost * (1 + BUDGET_TOLERANCE)
    two = budget_genome(space, cost, level_errors, limit, 2)
    for name, found in (("reverse", space.reverse(genome)), ("two segments", two)):
        strategy = space.strategy(found, {"kind": name})
        strategy.save(folder / COMPARISONS[name])


def _identity(
    sampler: Sampler, scorer: Scorer | None, quality: SampledQuality | None
) -> dict[str, Any]:
    """Everything beside the search's settings that decides what it scores, and how."""
    return {
        "weights": weights_digest(sampler.network),
        "sampler": sampler.config.sampler,
        "features": scorer and scorer.extractor.digest,
        "reference": scorer and scorer.reference_name,
        "reference_digest": scorer and scorer.reference.content_digest,
        "distance": quality and quality.distance.name,
        # scores by other blocks have no paired intervals beside these
        **({"blocks": quality.blocks} if quality and quality.blocks != BLOCKS else {}),
        "sensitivity_images": sampler.config.eval.sensitivity_images,
    }
