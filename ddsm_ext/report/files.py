"""The files of a run folder as the report wants them: each read once, by its type.

A file that is not there yet is None, or empty; so is one that is damaged or cannot be read, and
`RunFiles.faults` has a sentence about it. Of a file of lines the whole ones are taken.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

from PIL import Image

from ddsm_ext.io.digest import unsealed
from ddsm_ext.io.document import Document
from ddsm_ext.io.files import one_line, parse_json, parse_jsonl, read_bytes, to_json
from ddsm_ext.io.typed import Count, Label, Row, Share, Width, read
from ddsm_ext.report.records import (
    Command,
    Costs,
    Environment,
    LogRow,
    Metrics,
    Pictures,
    Steps,
)
from ddsm_ext.search.front import Front
from ddsm_ext.search.history import Evaluation, History, evaluation, killed_between
from ddsm_ext.search.sensitivity import Sensitivity
from ddsm_ext.settings import Refusal

log = logging.getLogger(__name__)

ARCHIVE, HISTORY = "search/archive.jsonl", "search/history.json"
_MAX_PICTURE_BYTES = 8 << 20
_MAX_CONFIG_BYTES = 1 << 20
T = TypeVar("T")
D = TypeVar("D", bound=Document)


@dataclass(frozen=True)
class ModelKeys(Row):
    """What the report says of a config's section model."""

    partial: ClassVar[bool] = True

    image_size: Count | None = None
    image_channels: Count | None = None
    widths: tuple[Width, ...] = ()


@dataclass(frozen=True)
class DataKeys(Row):
    """What the report says of a config's section data."""

    partial: ClassVar[bool] = True

    source: str = "images"


@dataclass(frozen=True)
class CodecKeys(Row):
    """What the report says of a config's section codec."""

    partial: ClassVar[bool] = True

    kind: str = "pixels"
    factor: Count = 1
    image_channels: Count | None = None


@dataclass(frozen=True)
class TrainKeys(Row):
    """What the report says of a config's section train."""

    partial: ClassVar[bool] = True

    steps: Count | None = None
    widths: tuple[Width, ...] = ()
    middle_widths: Count = 1


@dataclass(frozen=True)
class TuneKeys(Row):
    """What the report says of a config's section tune."""

    partial: ClassVar[bool] = True

    origin: Label | None = None
    origin_step: Count | None = None
    widths: tuple[Width, ...] = ()
    sandwich_share: Share = 0.0


@dataclass(frozen=True)
class Config(Row):
    """What the report says of config.json in words.

    The settings of the run are not made of it: what an earlier version knew, and a later one
    refuses, is shown as it is.
    """

    partial: ClassVar[bool] = True

    model: ModelKeys = field(default_factory=ModelKeys)
    data: DataKeys = field(default_factory=DataKeys)
    codec: CodecKeys = field(default_factory=CodecKeys)
    train: TrainKeys = field(default_factory=TrainKeys)
    tune: TuneKeys = field(default_factory=TuneKeys)


@dataclass(frozen=True)
class RunFiles:
    """All that the report knows of a run.

    Args:
        folder: the run folder.
        config, front, ...: its files.
        config_text: all of config.json.
        samples: seeds of the rows of images, and label and PNG file of each row.
        faults: name of one of these -> what is wrong with its file, in a sentence.
    """

    folder: Path
    config: Config | None
    config_text: str
    environment: Environment | None
    log: tuple[LogRow, ...]
    evaluations: tuple[Evaluation, ...]
    front: Front | None
    history: History | None
    sensitivity: Sensitivity | None
    steps: Steps | None
    costs: Costs | None
    metrics: Metrics | None
    samples: tuple[str, list[tuple[str, bytes]]]
    commands: tuple[Command, ...]
    faults: dict[str, str]


def load_run(run: Path) -> RunFiles:
    """Read the files of a run folder.

    Raises:
        FileNotFoundError: there is no such folder, or it has no config.json.
    """
    if not run.is_dir():
        raise FileNotFoundError(f"{run}: is no folder; need a run folder such as runs/00000-digits")
    if not (run / "config.json").exists():
        raise FileNotFoundError(f"{run}: has no config.json; need a run folder made by ddsm")
    files = _Files(run)
    config, text = files.read("config", "config.json", _config) or (None, "")
    evaluations = files.rows("evaluations", ARCHIVE, evaluation, headed=True)
    history = files.document("history", HISTORY, History)
    scored = history.generations[-1].evaluations if history and history.generations else 0
    if len(evaluations) < scored:  # which is written after them
        files.faults.setdefault(
            "evaluations",
            f"{ARCHIVE}: holds {len(evaluations)} evaluations; need the {scored} that {HISTORY} "
            "counts",
        )
    if killed := killed_between(run):
        files.faults.setdefault("front", f"search: {killed}")
    return RunFiles(
        folder=run,
        config=config,
        config_text=text,
        environment=files.document("environment", "env.json", Environment),
        log=files.rows("log", "log.jsonl", LogRow.from_dict),
        evaluations=evaluations,
        front=files.document("front", "search/front.json", Front),
        history=history,
        sensitivity=files.document("sensitivity", "search/sensitivity.json", Sensitivity),
        steps=files.document("steps", "search/steps.json", Steps),
        costs=files.document("costs", "search/costs.json", Costs),
        metrics=files.document("metrics", "metrics.json", Metrics),
        samples=files.pictures("samples", "samples/compare/index.json"),
        commands=files.rows("commands", "commands.jsonl", Command.from_dict),
        faults=files.faults,
    )


class _Files:
    """Reads the files of a run one after the other and keeps what is wrong with them."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.faults: dict[str, str] = {}

    def read(self, name: str, file: str, reader: Callable[[Path], T]) -> T | None:
        """What a reader makes of a file; None where it is not there, or is refused."""
        path = self.run / file
        try:
            return reader(path)
        except FileNotFoundError:
            return None
        except Refusal as error:
            fault = one_line(error).replace(str(path), file)
        except OSError as error:
            fault = f"{file}: {error.strerror or one_line(error)}"
        except Exception as error:  # a fault of ours leaves the other files standing
            log.debug("reading %s", path, exc_info=True)
            fault = f"{file}: cannot be read ({type(error).__name__}: {error!s:.200})"
        self.faults.setdefault(name, fault)
        return None

    def document(self, name: str, file: str, kind: type[D]) -> D | None:
        """A document."""
        return self.read(name, file, kind.load)

    def rows(
        self, name: str, file: str, make: Callable[..., T], *, headed: bool = False
    ) -> tuple[T, ...]:
        """What `make` makes of each line; of a file with a header, of each line and the header."""

        def lines(path: Path) -> tuple[T, ...]:
            rows, damaged = parse_jsonl(read_bytes(path, "JSON-lines file"))
            header = [rows.pop(0)] if headed and rows and rows[0].get("kind") == "header" else []
            made, wrong = list[T](), [f"line {number} is no JSON object" for number in damaged]
            for number, row in enumerate(rows, 1 + len(header)):
                try:
                    made.append(make(row, *header))
                except Refusal as error:
                    wrong.append(f"row {number}: {one_line(error)}")
            if wrong:
                left_out = f"left out: {len(wrong)} of {len(wrong) + len(made)} lines"
                self.faults[name] = f"{file}: {wrong[0]} ({left_out})"
            return tuple(made)

        return self.read(name, file, lines) or ()

    def pictures(self, name: str, file: str) -> tuple[str, list[tuple[str, bytes]]]:
        """Seeds, and label and PNG file of each row of samples that lies in the run folder."""
        index = self.document(name, file, Pictures)
        found: list[tuple[str, bytes]] = []
        for row in index.rows if index else ():
            place = f"samples/compare/{Path(row.file).name}"
            picture = self.read(name, place, _picture)
            if picture is not None:
                found.append((row.label, picture))
        return index.seeds if index else "", found


def _config(path: Path) -> tuple[Config, str]:
    """What is said of a config, and all of its text."""
    data = read_bytes(path, "run's config")
    if len(data) > _MAX_CONFIG_BYTES:
        raise Refusal(f"{path}: is over {_MAX_CONFIG_BYTES} bytes; need a run's config")
    content = unsealed(parse_json(data, str(path), "run's config"), str(path))
    try:
        return read(Config, content), to_json(content, indent=2)
    except Refusal as error:
        raise Refusal(f"{path}: {error}") from None


def _picture(path: Path) -> bytes:
    data = read_bytes(path, "PNG file")
    if len(data) > _MAX_PICTURE_BYTES:
        raise Refusal(f"{path}: is over {_MAX_PICTURE_BYTES} bytes; need a row of images")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.verify()
    except Exception as error:  # Pillow raises what it likes
        raise Refusal(f"{path}: {type(error).__name__}; need a whole PNG file") from None
    return data
