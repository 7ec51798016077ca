"""Runs every atom of the program that the build made, each a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

LIMIT_S = 4.0  # a CUDA context takes a second, a wait that traps two
BESIDE = 4


def run_atom(program: Path, name: str, limit_s: float) -> dict[str, Any]:
    """Return what the program says of one atom, or how it ended."""
    command = [str(program), name, str(program.with_name("atoms.expected"))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"atom": name, "status": "not run", "reason": f"stopped after {limit_s:g} s"}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    reason = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    return {"atom": name, "status": "not run", "reason": reason}


def listed(program: Path) -> dict[str, dict[str, Any]]:
    """Return name -> path, question and about of every atom."""
    done = subprocess.run([str(program), "--list"], capture_output=True, text=True, check=True)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return {
        name: {"path": path, "question": kind == "question", "about": about}
        for name, path, kind, about in rows
    }


def main(words: Sequence[str], *, limit_s: float = LIMIT_S) -> int:
    """Run all, each for limit_s at most; 1 if one that a kernel relies on is not right."""
    parser = argparse.ArgumentParser(prog="gpu_suite.atoms")
    parser.add_argument("folder", type=Path, help="of the program and what to compare with")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(words)
    program = arguments.folder.resolve() / "atoms"
    if not program.exists():
        print(f"{program} is missing; the build makes it")
        return 1
    program.chmod(0o755)  # copying from machine to machine may lose it
    known = listed(program)
    with ThreadPoolExecutor(BESIDE) as pool:
        rows = list(pool.map(lambda name: known[name] | run_atom(program, name, limit_s), known))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    bad = [row for row in rows if row["status"] != "right" and not row["question"]]
    for row in rows:
        if row["status"] != "right":
            print(f"{row['atom']}: {row['status']} {row.get('reason', '')} ({row['about']})")
    right = [row["atom"] for row in rows if row["status"] == "right"]
    print(json.dumps({
        "right": len(right),
        "not_right": {row["atom"]: row["status"] for row in bad},
        "questions": {row["atom"]: row["status"] for row in rows if row["question"]},
    }))  # fmt: skip
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
