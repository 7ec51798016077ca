"""Composes a search: costs of the widths, sensitivity, the two qualities, and what is written."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddsm_ext.data.pixels import from_uint8, to_uint8
from ddsm_ext.diffusion.noise import normal
from ddsm_ext.diffusion.schedule import add_noise
from ddsm_ext.graph.count import macs
from ddsm_ext.io.files import read_jsonl, write_json
from ddsm_ext.run.compose import Sampler, counter, weights_digest
from ddsm_ext.run.config import EvalConfig
from ddsm_ext.run.costs import conditions, macs_table, measure_ms
from ddsm_ext.run.scoring import Scorer
from ddsm_ext.sampling.levels import evaluations
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.config import SearchConfig
from ddsm_ext.search.cost import CostTable
from ddsm_ext.search.engine import SearchProgress, search
from ddsm_ext.search.front import FrontPoint
from ddsm_ext.search.sensitivity import Sensitivity, additive_quality, measure_sensitivity
from ddsm_ext.settings import completed, plain

log = logging.getLogger(__name__)

SENSITIVITY_LEVELS = 24
SENSITIVITY_STREAM = 2  # sampling itself draws from the streams 0 and 1
# Seeds of a search's samples begin here: a strategy is chosen on other noise than it is scored on.
SEARCH_FIRST_SEED = 1_000_000


def measure_costs(run: Path, sampler: Sampler, widths: Sequence[float]) -> CostTable:
    """Return the ms of one image and step at each width, as the sampler runs them.

    Times measured before for this run, under the same conditions, are taken again: a search in ms
    continues only with the costs that it began with.
    """
    config, device, batch = sampler.config, sampler.device, sampler.batch_size
    x = normal(range(batch), 0, sampler.shape, device=device).to(sampler.dtype)  # [N, C, H, W]
    x = x.contiguous(memory_format=torch.channels_last)
    t = torch.zeros(batch, dtype=torch.int64, device=device)  # [N]

    @torch.inference_mode()
    def run_step(width: float) -> None:
        sampler.network(x, t, width)
        sampler.finish()

    where = conditions(
        batch=batch,
        dtype=config.sampler.dtype,
        device=device,
        network=f"ch {config.model.ch}, image {config.model.image_size}",
    )
    path = run / "search" / "cost_table.json"
    if path.exists():
        with contextlib.suppress(ValueError):
            known = CostTable.load(path)
            known.check_conditions(where)
            if set(known.costs) == set(widths):
                return known
    told = counter(sampler.progress, "timing each width", "round")
    return measure_ms(run_step, widths, batch=batch, conditions=where, rounds=9, progress=told)


def save_costs(run: Path, in_macs: CostTable, ms: CostTable) -> None:
    """Write search/cost_table.json (ms with its conditions) and search/costs.json (both)."""
    ms.save(run / "search" / "cost_table.json")
    rows = [{"width": w, "macs": cost, "ms": ms.costs[w]} for w, cost in in_macs.costs.items()]
    shared = {"batch_size": ms.conditions["batch"], "threads": ms.conditions["threads"]}
    write_json(run / "search" / "costs.json", {**shared, "rows": rows})


def sensitivity_of(run: Path, scorer: Scorer, weights: str, widths: Sequence[float]) -> Sensitivity:
    """Return the error of each width at noise levels spread over the schedule.

    One measured before for this run, with the same network, images and noise, is taken again;
    otherwise it is measured and kept as search/sensitivity.json. An earlier version's does not say
    what it was measured with: it belongs to the archive beside it, which a search continues only
    with the very numbers that it began with.

    Args:
        run: the run folder.
        scorer: its network and images.
        weights: digest of the network's weights.
        widths: widths to measure.
    """
    sampler = scorer.sampler
    config, schedule = sampler.config, sampler.schedule
    count, last = SENSITIVITY_LEVELS, schedule.timesteps - 1
    timesteps = sorted({round(last * i / (count - 1)) for i in range(count)})
    basis = {
        "weights": weights,
        "model": plain(config.model),
        "data": plain(config.data),
        "diffusion": plain(config.diffusion),
        "images": config.eval.sensitivity_images,
        "first_seed": SEARCH_FIRST_SEED,
        "timesteps": timesteps,
        "widths": list(widths),
        "dtype": config.sampler.dtype,
        "device": sampler.device.type,
    }
    path = run / "search" / "sensitivity.json"
    if path.exists():
        with contextlib.suppress(ValueError):
            known = Sensitivity.load(path)
            begun = not known.conditions and (run / "search" / "archive.jsonl").exists()
            if begun or known.conditions == basis:
                return known
    real = scorer.dataset.images[: config.eval.sensitivity_images]
    images = from_uint8(torch.from_numpy(real), sampler.device)  # [N, C, H, W]
    seeds = range(SEARCH_FIRST_SEED, SEARCH_FIRST_SEED + len(images))

    def noise(level: int) -> Tensor:
        return normal(seeds, level, sampler.shape, stream=SENSITIVITY_STREAM, device=sampler.device)

    measured = measure_sensitivity(
        lambda x, t, width: sampler.network(x.to(sampler.dtype), t, width),
        images,
        add_noise=lambda x0, noise, t: add_noise(x0, noise, t, schedule),
        timesteps=timesteps,
        log_snrs=[float(schedule.log_snr(t)) for t in timesteps],
        widths=widths,
        noise=noise,
        conditions=basis,
        progress=counter(sampler.progress, "sensitivity", "level"),
    )
    measured.save(path)
    return measured


def sampled_frechet(scorer: Scorer) -> Callable[[Strategy], float]:
    """Return the full quality: Fréchet distance of samples from the search's own seeds."""
    count = scorer.sampler.config.eval.search_images
    seeds = list(range(SEARCH_FIRST_SEED, SEARCH_FIRST_SEED + count))

    def quality(strategy: Strategy) -> float:
        return scorer.frechet(to_uint8(scorer.sampler.images(strategy, seeds)).cpu())

    return quality


def search_run(run: Path, scorer: Scorer, settings: SearchConfig) -> FrontPoint:
    """Search a run's strategies, write every file of its search folder, return what it chose."""
    sampler, widths = scorer.sampler, settings.widths
    identity = _identity(scorer)
    chosen = {"cost": settings.cost, "seed": settings.seed, "widths": list(widths)}
    set_aside_other(run, {**identity, **chosen})
    in_macs = macs_table(sampler.config.model, widths)
    ms = measure_costs(run, sampler, widths)
    save_costs(run, in_macs, ms)
    measured = sensitivity_of(run, scorer, identity["weights"], widths)
    log_snrs = [e.log_snr for e in evaluations(sampler.schedule, sampler.config.sampler)]
    errors = measured.for_steps(log_snrs, widths)
    told = counter(sampler.progress, "search", "score")

    def tell(state: SearchProgress) -> None:
        volume = "" if state.hypervolume is None else f", hypervolume {state.hypervolume:.4f}"
        remark = f"generation {state.generation + 1}/{state.generations}{volume}"
        told(state.evaluations, max(state.expected, state.evaluations), remark)

    log.info("searching: %d generations of %d", settings.generations, settings.population)
    front = search(
        settings,
        cost_table=in_macs if settings.cost == "macs" else ms,
        log_snrs=log_snrs,
        run_dir=run,
        quality_cheap=additive_quality(errors, widths, log_snrs),
        quality_full=sampled_frechet(scorer),
        errors=errors,
        identity=identity,
        quality_name="Fréchet distance",
        progress=tell,
    )
    assert front.chosen is not None
    save_steps(run, sampler, front.chosen.strategy)
    return front.chosen


def _identity(scorer: Scorer) -> dict[str, Any]:
    """Everything beside the search's settings that decides what a score comes out as."""
    config = scorer.sampler.config
    measured = config.eval.sensitivity_images
    return {
        "weights": weights_digest(scorer.sampler.network),
        "sampler": config.sampler,
        "features": scorer.extractor.digest,
        "reference": scorer.reference_name,
        "images": config.eval.search_images,
        # None at the default: searches from before this could be set do not say it
        "sensitivity_images": None if measured == EvalConfig.sensitivity_images else measured,
    }


def set_aside_other(run: Path, identity: dict[str, Any]) -> None:
    """Rename search/ to search-00000/ and so on if it holds another search's evaluations.

    Args:
        run: the run folder.
        identity: what the scores of the search to come depend on, with settings among it.
    """
    archive = run / "search" / "archive.jsonl"
    rows = read_jsonl(archive, missing_ok=True)
    if not rows:
        return
    found = completed(rows[0].get("identity", {}), identity)
    if all(found.get(key) == value for key, value in plain(identity).items()):
        return
    number = 0
    while (run / f"search-{number:05d}").exists():
        number += 1
    log.info("keeping the earlier search, which is another one, as %s/search-%05d", run, number)
    (run / "search").rename(run / f"search-{number:05d}")


def save_steps(run: Path, sampler: Sampler, strategy: Strategy) -> None:
    """Write search/steps.json: timestep, log-SNR and width of each step of the run's sampler."""
    config = sampler.config
    steps = evaluations(sampler.schedule, config.sampler, strategy)
    content = {
        "timesteps": [step.t for step in steps],
        "log_snr": [step.log_snr for step in steps],
        "widths": [step.width for step in steps],
        "macs": {f"{w:g}": macs(config.model, w) for w in config.model.widths},
    }
    write_json(run / "search" / "steps.json", content)
