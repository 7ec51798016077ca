"""What a run leaves in its folder: all.tar.gz and summary.json, complete after every stage."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu_suite.running import Outcome

ARCHIVE, SUMMARY = "all.tar.gz", "summary.json"


def write_state(
    out: Path, scratch: Path, about: Mapping[str, Any], outcomes: Sequence[Outcome]
) -> None:
    """Replace summary and archive by what there is now.

    Args:
        out: the folder that keeps them.
        scratch: all that the stages wrote; what they still write is taken as it is.
        about: what the summary says beside the stages.
        outcomes: of the stages so far.
    """
    content = {**about, "stages": [asdict(outcome) for outcome in outcomes]}
    text = (json.dumps(content, indent=1) + "\n").encode()
    _replace(out / SUMMARY, text)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        _add(archive, SUMMARY, text)
        for path in sorted(scratch.rglob("*")):
            if path.is_file():
                with suppress(OSError):  # what a stage removes meanwhile
                    _add(archive, path.relative_to(scratch).as_posix(), path.read_bytes())
    _replace(out / ARCHIVE, packed.getvalue())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime = len(content), int(time.time())
    archive.addfile(entry, io.BytesIO(content))


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def read_summary(place: Path) -> dict[str, Any]:
    """Return the summary of a run: of its folder, its summary.json or its all.tar.gz.

    Raises:
        ValueError: there is none.
    """
    path = place / SUMMARY if place.is_dir() else place
    try:
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                member = archive.extractfile(SUMMARY)
                assert member is not None
                content = json.loads(member.read())
        else:
            content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and isinstance(content.get("stages"), list):
            return content
        reason = "it names no stages"
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError) as error:
        reason = str(error)
    raise ValueError(
        f"gpu_suite: {place} holds no earlier run ({reason}); need its folder, its {SUMMARY} or "
        f"its {ARCHIVE}"
    )
