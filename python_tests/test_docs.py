"""The pages: their examples run as they stand, each page in a process of its own; their tables."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = ("adding-a-model", "adding-an-op", "adding-a-sampler",
         "samplers-and-guidance", "latent-and-diffusers")  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page: str, tmp_path: Path) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    script = tmp_path / "example.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    command = [sys.executable, "-W", "error::UserWarning:ddsm_ext", str(script)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", ["*.md", "docs/*.md", "benchmarks/*.md", "ddsm_ext/**/*.md"])
def test_no_text_is_taken_for_a_row_of_the_table_above_it(page: str) -> None:
    found = {path: path.read_text(encoding="utf-8") for path in ROOT.glob(page)}
    assert found
    for path, text in found.items():
        assert not re.search(r"^\|.*\n[^|\n].*", text, re.MULTILINE), path
