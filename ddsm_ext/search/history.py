"""What a search leaves for people to read: how its front grew, and the scores of its archive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from ddsm_ext.io.digest import KEY, json_digest
from ddsm_ext.io.typed import Amount, Count, Label, Positive, Row, TypedDocument, Width
from ddsm_ext.settings import Refusal

STEPS_FILE = "steps.json"
# What is written beside the chosen strategy, to compare it with: label -> file
COMPARISONS = {"reverse": "reverse.json", "two segments": "two-segments.json"}
Place = tuple[float, float]  # (quality, cost), both lower the better


@dataclass(frozen=True)
class Generation(Row):
    """The front by the scores known at one time of a search.

    Args:
        generation: of the evolution; 0 the race before it.
        hypervolume: of the front.
        stage: what the search was doing.
        evaluations: scores taken until then.
        network_evaluations: evaluations of the network that they took; None from an earlier
            version, which did not count them.
        front: (quality, cost as a share of the full width's) of each strategy on it.
    """

    generation: Count
    hypervolume: Amount
    stage: Label = ""
    evaluations: Count = 0
    network_evaluations: Count | None = None
    front: tuple[Place, ...] = ()


@dataclass(frozen=True)
class Ends(Row):
    """The box of the hypervolume: its ideal point and its reference point, losses by costs."""

    ideal: Place
    reference: Place


@dataclass(frozen=True)
class History(TypedDocument):
    """history.json: how the front of a search grew.

    Args:
        generations: from the first to the last.
        hypervolume_points: the box; None where no samples were scored.
    """

    what: ClassVar[str] = "history of a search"

    generations: tuple[Generation, ...]
    hypervolume_points: Ends | None = None

    @classmethod
    def from_content(cls, content: Any, source: str) -> Self:
        """Read a file's content; of one from before it had a version, what later ones have too."""
        if isinstance(content, dict) and "version" not in content:
            rows = content.get("generations")
            if isinstance(rows, list) and any(isinstance(r, dict) and "fronts" in r for r in rows):
                content = {"generations": [_as_of_now(row) for row in rows]}
        return super().from_content(content, source)


def _as_of_now(row: Any) -> Any:
    """A row of a search by stages, which counted by stage and had a front of each."""
    if not isinstance(row, dict):
        return row
    known = {field.name for field in fields(Generation)} - {"evaluations", "front"}
    return {key: value for key, value in row.items() if key in known}


def killed_between(run: Path) -> str | None:
    """What to say of a run without search/, as one took the place of another; None: it has it."""
    if (run / "search").exists() or not any(run.glob(".search-[0-9]*")):
        return None
    what = "a search was killed while it took the place of another"
    return f"{what}; need the same ddsm search once more"


@dataclass(frozen=True)
class GenomeRow(Row):
    """A strategy as the archive has it; see `search.genome`."""

    boundaries: tuple[Count, ...]
    widths: tuple[Width, ...]


@dataclass(frozen=True)
class Evaluation(Row):
    """A line of archive.jsonl, as far as a reader of scores wants it.

    Args:
        genome: the strategy.
        cost: of an image.
        quality: the score, lower is better; None where it failed, or is the proxy's.
        generation: of the evolution.
        stage: what the search was doing.
        samples: first and end of the samples that were scored; None from an earlier version.
    """

    partial: ClassVar[bool] = True

    genome: GenomeRow
    cost: Positive
    quality: float | None
    generation: Count
    stage: Label = ""
    samples: tuple[Count, Count] | None = None


def row_digest(identity: Any, row: Mapping[str, Any]) -> str:
    """SHA-256 of a line of an archive, but for the time that its score took.

    Args:
        identity: SHA-256 of what the archive's scores are scores of, from its header.
        row: the line.
    """
    scored = {key: value for key, value in row.items() if key not in ("seconds", KEY)}
    return json_digest([identity, scored])


def evaluation(row: Mapping[str, Any], header: Mapping[str, Any] | None = None) -> Evaluation:
    """Return the evaluation of a line of an archive.

    Args:
        row: the line.
        header: of the archive; None where it has none.

    Raises:
        ValueError: it is none, or not as the search wrote it; an earlier version wrote no digest.
    """
    if KEY in row and row[KEY] != row_digest((header or {}).get(KEY), row):
        raise Refusal("does not match its SHA-256; need it as its search wrote it")
    return Evaluation.from_dict(row)
