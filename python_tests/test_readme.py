"""The README's example of the parts runs as it stands."""

import re
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parent.parent / "README.md"


def test_python_example_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2  # run/test_quickstart.py runs the first
    names: dict[str, Any] = {}
    exec(compile(blocks[1], str(README), "exec"), names)
    assert names["images"].shape == (4, 3, 16, 16)
    assert names["images"].abs().max() <= 1.0
