"""The archive of a search: every evaluation, on disk before the next one begins.

`archive.jsonl` has a header line that says what its scores are scores of, then one line an
evaluation: a strategy, the range of samples that was scored, the values of the score. A line's
digest is that of the identity and the line, so that no line of another search is taken. A search
replays its random choices from the seed and looks the scores up here, so a resumed search repeats
no evaluation and ends as an uninterrupted one would.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddsm_ext.io.digest import json_digest
from ddsm_ext.io.files import append_jsonl, locked, one_line, read_jsonl
from ddsm_ext.search.genome import Genome, StrategySpace
from ddsm_ext.search.history import row_digest
from ddsm_ext.settings import Refusal, TypeRefusal, completed, plain

ARCHIVE_FILE = "archive.jsonl"
VERSION = 3
Request = tuple[Genome, range]  # what is to be scored, on which of the search's samples


class Archive:
    """Scores by genome and samples, backed by `archive.jsonl`. Use as a context manager.

    Args:
        path: the file; made when missing. One search at a time holds it.
        identity: what the scores depend on (checkpoint digest, sampler, widths, seed, ...), plain
            JSON values and settings; settings that the file lacks count as their defaults.
        space: the strategies searched.

    Raises:
        ValueError: the file belongs to a search with another identity (the sentence names the
            first difference), another search holds it, or a line is not an evaluation.
        TypeError: the identity has no JSON form.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], space: StrategySpace) -> None:
        self.path = path
        self.space = space
        self._given = identity
        try:
            text = json.dumps(plain(identity), sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeRefusal(f"search: identity is not JSON: {one_line(error)}") from None
        self.identity = json.loads(text)
        self._scores: dict[Request, tuple[float, ...]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as lock:
            try:
                lock.enter_context(locked(path.parent, wait=False))
            except BlockingIOError:
                raise Refusal(f"{path}: another search is using it; need to end first") from None
            self._read()
            self._lock = lock.pop_all()  # held until `close`

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another search use the file."""
        self._lock.close()

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, genome: Genome, samples: range) -> tuple[float, ...] | None:
        """Return the values of a genome's score; None if not evaluated, one inf if it failed."""
        return self._scores.get((genome, samples))

    def add(
        self, genome: Genome, samples: range, values: Sequence[float], row: Mapping[str, Any]
    ) -> None:
        """Store a score and write its line, fsynced.

        Args:
            genome: what was evaluated.
            samples: the samples that were scored, by their place in the search's seeds.
            values: one a block of samples; one that is not finite says that the evaluation failed.
            row: further values of the line, plain JSON.
        """
        known = [float(value) for value in values]
        failed = not all(math.isfinite(value) for value in known)
        line = {
            "kind": "evaluation",
            "genome": self.space.to_row(genome),
            "samples": [samples.start, samples.stop],
        }
        scored = {"values": None if failed else known, "failed": failed}
        whole = {**line, **row, **scored}
        append_jsonl(self.path, {**whole, "digest": row_digest(self._digest, whole)})
        self._scores[genome, samples] = (math.inf,) if failed else tuple(known)

    def _read(self) -> None:
        rows = read_jsonl(self.path, missing_ok=True)
        if not rows:
            self._digest = json_digest(self.identity)
            header = {"kind": "header", "version": VERSION, "identity": self.identity}
            append_jsonl(self.path, {**header, "digest": self._digest})
            return
        self._check_header(rows[0])
        self._digest = rows[0]["digest"]  # of the identity as the file has it
        for number, row in enumerate(rows[1:], 2):
            try:
                genome = self.space.from_row(row["genome"])
                first, end = (int(value) for value in row["samples"])
                values = () if row["failed"] else tuple(float(v) for v in row["values"])
                scored = row["failed"] or (values and all(map(math.isfinite, values)))
                if not (0 <= first < end and scored):
                    raise ValueError
            except (KeyError, TypeError, ValueError):
                raise Refusal(
                    f"{self.path}: row {number} is no evaluation of this search; need genome, "
                    f"samples and values{self._to_cut(number)}"
                ) from None
            if row.get("digest") != row_digest(self._digest, row):
                raise Refusal(
                    f"{self.path}: row {number} does not match its SHA-256; need it as this search "
                    f"wrote it{self._to_cut(number)}"
                )
            request = (genome, range(first, end))
            if request in self._scores:
                raise Refusal(
                    f"{self.path}: row {number} is of a strategy and samples of an earlier row; "
                    f"need each once{self._to_cut(number)}"
                )
            self._scores[request] = values or (math.inf,)

    @staticmethod
    def _to_cut(number: int) -> str:
        return f" (without the rows from there on, {number - 2} evaluations are kept)"

    def _check_header(self, header: dict[str, Any]) -> None:
        if header.get("kind") != "header" or not isinstance(header.get("identity"), dict):
            raise Refusal(f"{self.path}: has no header line; need an archive of a search")
        if header.get("version") != VERSION:
            raise Refusal(
                f"{self.path}: version is {header.get('version')!r}; this program reads {VERSION}"
            )
        if header.get("digest") != json_digest(header["identity"]):
            raise Refusal(f"{self.path}: the header is damaged; need an archive of a search")
        theirs = completed(header["identity"], self._given)
        for name in sorted({*theirs, *self.identity}):
            if theirs.get(name) != self.identity.get(name):
                was, now = _short(theirs.get(name)), _short(self.identity.get(name))
                raise Refusal(
                    f"{self.path}: was made with {name} {was}, this search has {now}; "
                    "need the same, or another run folder"
                )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:60]}... (digest {json_digest(value)[:12]})"
