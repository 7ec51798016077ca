"""The tables of docs/method.md and results.md are those that the committed figures give."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = {name: (ROOT / f"docs/{name}.md").read_text() for name in ("method", "results")}
FORM = re.compile(r"^<!-- table: python (.+?) -->\n((?:\|.*\n)+)", re.M)
TABLES = [each for page in PAGES.values() for each in FORM.findall(page)]


def test_the_pages_have_tables() -> None:
    assert all(FORM.search(page) for page in PAGES.values())


@pytest.mark.parametrize(("command", "table"), TABLES, ids=[command for command, _ in TABLES])
def test_a_table_is_that_of_its_command(command: str, table: str) -> None:
    words = [sys.executable, *command.split()]
    # a benchmark may import its neighbour, which the tests' PYTHONSAFEPATH hides
    env = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    found = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert found.stdout == table
