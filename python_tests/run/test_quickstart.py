"""The README's way from Python: train, search, sample, score and report in fifteen lines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddsm_ext.sampling.strategy import Strategy

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_readmes_quickstart_runs_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = README.read_text(encoding="utf-8")
    block = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    assert len(block.strip().splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(block, str(README), "exec"), names)

    said = capsys.readouterr()
    assert said.err == ""  # no bar, no line: only what the block prints itself
    run = tmp_path / "runs" / "00000-notebook"
    assert said.out.startswith("runs/00000-notebook/report.html")
    html = (run / "report.html").read_text()
    assert "MACs saved" in html
    assert "No samples yet" not in html
    assert Strategy.load(run / "search" / "strategy.json").origin["cost_relative"] <= 0.6
    samples = names["samples"]
    assert samples.images.shape == (16, 8, 8, 1)
    with Image.open(samples.folder / "seed-000003.png") as image:
        assert np.array_equal(np.asarray(image), samples.images[3, :, :, 0])
    kinds = [row["kind"] for row in names["scores"]["rows"]]
    # twice, on two ranges of seeds
    once = ["full", "strategy", "width", "width", "width", "reverse", "two segments"]
    assert kinds == once * 2

    before = (run / "search" / "archive.jsonl").read_bytes()
    measured = (run / "search" / "sensitivity.json").stat()
    exec(compile(block, str(README), "exec"), {})
    assert (run / "search" / "archive.jsonl").read_bytes() == before
    # what was measured with the same network and images is not measured again
    again = (run / "search" / "sensitivity.json").stat()
    assert (again.st_ino, again.st_mtime_ns) == (measured.st_ino, measured.st_mtime_ns)
    assert len(list((tmp_path / "runs").iterdir())) == 1
