"""What a run leaves in OUT_DIR: a few files, each replaced as a whole, all of use at any moment."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu_train.steps import Outcome

INDEX = "ema.safetensors.index.json"
RESULTS = "results.json"
SHEET = "samples.png"
STRATEGY = "strategy.json"
SHARD_BYTES = 15_000_000
LOG_ROWS = 200


class Results:
    """Copies of what a run folder holds, kept up to date while commands work in it.

    Args:
        out: OUT_DIR.
        about: what to say of the machine and the call.
        images_before: images that the weights had seen when the run began with them.
    """

    def __init__(self, out: Path, about: dict[str, Any], images_before: int) -> None:
        self.out, self.about, self.images_before = out, about, images_before
        self.outcomes: list[Outcome] = []
        self._published: Path | None = None

    def publish_weights(self, run: Path) -> None:
        """Write the averaged weights of a run's newest checkpoint in bfloat16, if they are new."""
        from ddsm_ext.io.checkpoint import list_checkpoints, load_checkpoint, newest_complete
        from ddsm_ext.run.folder import run_config
        from gpu_train.shards import save_shards

        found = list_checkpoints(run)
        if not found or found[-1] == self._published:
            return
        newest = newest_complete(run)
        if newest is None:
            return
        checkpoint = load_checkpoint(newest, ["ema"])
        config = run_config(run)
        seen = self.images_before + checkpoint.step * config["train"]["batch_size"]
        config["train"] |= {"start_from": None}
        about = {"format": "pt", "step": checkpoint.step, "images_seen": seen, "config": config}
        weights = {name: t.bfloat16() for name, t in checkpoint.tensors["ema"].items()}
        save_shards(self.out / INDEX, weights, max_bytes=SHARD_BYTES, about=about)
        self._published = found[-1]
        self.write(run)

    def write(self, run: Path) -> None:
        """Write results.json, strategy.json and samples.png from what the run folder holds now."""
        from ddsm_ext.io.files import read_json, write_atomic, write_json
        from ddsm_ext.run.folder import run_config

        search = run / "search"
        chosen = search / "strategy.json"
        if chosen.exists():
            write_atomic(self.out / STRATEGY, chosen.read_bytes())
        write_sheet(run, self.out / SHEET)
        scores = _read(run / "metrics.json")
        content = {
            **self.about,
            "steps": [asdict(outcome) for outcome in self.outcomes],
            "training": self._training(run),
            "config": run_config(run),
            "environment": read_json(run / "env.json"),
            "sensitivity": _read(search / "sensitivity.json"),
            "costs": _read(search / "costs.json"),
            "front": _read(search / "front.json"),
            "strategy": _read(chosen),
            "scores": scores,
            "paired": paired(scores["rows"] if scores else []),
            "sheet": _read(run / "samples" / "compare" / "index.json"),
        }
        write_json(self.out / RESULTS, content)

    def _training(self, run: Path) -> dict[str, Any]:
        from ddsm_ext.io.files import read_jsonl
        from ddsm_ext.run.folder import run_config

        rows = read_jsonl(run / "log.jsonl", missing_ok=True)
        steps = rows[-1]["step"] if rows else 0
        batch = run_config(run)["train"]["batch_size"]
        rates = [row["images_per_s"] for row in rows[1:]]
        return {
            "steps": steps,
            "images_seen": self.images_before + steps * batch,
            "images_seen_before": self.images_before,
            "images_per_s": statistics.median(rates) if rates else None,
            "log": rows[:: -(-len(rows) // LOG_ROWS) or 1],
        }


def _read(path: Path) -> Any:
    from ddsm_ext.io.files import read_json

    return read_json(path) if path.exists() else None


def images_seen(out: Path) -> int | None:
    """Return how many images the weights in OUT_DIR have seen; None: there are none."""
    content = _read(out / INDEX)
    return None if content is None else int(content["metadata"]["images_seen"])


def write_sheet(run: Path, path: Path) -> None:
    """Write the rows of `ddsm eval`'s comparison, the same seeds below each other, as one PNG."""
    from ddsm_ext.data.images import image_grid, read_image, save_png

    folder = run / "samples" / "compare"
    index = _read(folder / "index.json")
    if index is not None:
        rows = [read_image(folder / row["file"]) for row in index["rows"]]
        save_png(path, image_grid(rows, 1, scale=2, gap=0))


def paired(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each sampler beside the full width: means over seed ranges that all of them have.

    Args:
        rows: rows of metrics.json.

    Returns:
        per sampler: Fréchet distance and its difference to the full width's on the same seeds,
        mean and standard deviation over the ranges (None for one range), MACs and ms an image.
    """
    by_label: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_label.setdefault(row["label"], {})[row["seeds"]] = row
    full = by_label.get("full width", {})
    table = []
    for label, scored in by_label.items():
        ranges = [seeds for seeds in scored if seeds in full]
        if not ranges:
            continue
        distances = [scored[seeds]["frechet"] for seeds in ranges]
        differences = [scored[seeds]["frechet"] - full[seeds]["frechet"] for seeds in ranges]
        macs = scored[ranges[0]]["macs_per_image"]
        table.append(
            {
                "label": label,
                "seeds": ranges,
                "images_a_range": scored[ranges[0]]["images"],
                "frechet": _spread(distances),
                "frechet_minus_full": _spread(differences),
                "macs_per_image": macs,
                "macs_of_full": macs / full[ranges[0]]["macs_per_image"],
                "ms_per_image": statistics.median(scored[s]["ms_per_image"] for s in ranges),
            }
        )
    return table


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation}
