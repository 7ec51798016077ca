"""The tables of docs/method.md are those that the committed figures give."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLES = re.findall(
    r"^<!-- table: python (.+?) -->\n((?:\|.*\n)+)", (ROOT / "docs/method.md").read_text(), re.M
)


def test_the_page_has_tables() -> None:
    assert TABLES


@pytest.mark.parametrize(("command", "table"), TABLES, ids=[command for command, _ in TABLES])
def test_a_table_is_that_of_its_command(command: str, table: str) -> None:
    words = [sys.executable, *command.split()]
    # a benchmark may import its neighbour, which the tests' PYTHONSAFEPATH hides
    env = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    found = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert found.stdout == table
