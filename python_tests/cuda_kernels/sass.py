"""Machine code of compiled kernels: the instructions of each and its loops."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        address: in the kernel's code.
        text: with its predicate and operands.
    """

    address: int
    text: str

    @property
    def name(self) -> str:
        """With its suffixes: "STG.E.128"."""
        return re.sub(r"^@!?U?P\w+\s+", "", self.text).split()[0]

    def target(self) -> int | None:
        """Where it branches to; None: it is no branch."""
        found = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)", self.text)
        return int(found.group(1), 16) if found else None


def _carried(package: str, name: str) -> Path | None:
    """A program that an installed package carries."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(f.locate()) for f in files if Path(f).name == name), None)


@cache
def tool() -> Path | None:
    """cuobjdump: that of the PyPI package, on PATH, or the one that Triton carries."""
    found = _carried("nvidia-cuda-cuobjdump", "cuobjdump")
    if found:
        return found
    on_path = shutil.which("cuobjdump")
    if on_path:
        return Path(on_path)
    triton = find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    carried = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return carried if carried.exists() else None


def disassemble(file: Path, architecture: str) -> str:
    """What cuobjdump prints of an object file's code for an architecture such as "90a"."""
    program = tool()
    assert program is not None
    # It looks for nvdisasm on PATH.
    disassembler = _carried("nvidia-cuda-nvdisasm", "nvdisasm")
    folders = [str(p.parent) for p in (program, disassembler) if p] + [os.environ["PATH"]]
    command = [str(program), "-sass", "-arch", f"sm_{architecture}", str(file)]
    environment = os.environ | {"PATH": os.pathsep.join(folders)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def kernels(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each kernel in what `disassemble` returned, by its mangled name."""
    found = {}
    for part in text.split("Function : ")[1:]:
        lines = re.findall(r"^\s*/\*([0-9a-f]{4,6})\*/\s+(.*?)\s*;", part, re.MULTILINE)
        found[part.split()[0]] = [Instruction(int(at, 16), code) for at, code in lines]
    return found


def loops(kernel: list[Instruction], containing: str) -> list[list[Instruction]]:
    """The innermost loops with such an instruction: from a backward branch's target to it."""
    spans = []
    for instruction in kernel:
        target = instruction.target()
        if target is not None and target < instruction.address:
            spans.append((target, instruction.address))
    bodies = [[i for i in kernel if first <= i.address <= last] for first, last in spans]
    bodies = [body for body in bodies if any(i.name == containing for i in body)]
    inside = [{i.address for i in body} for body in bodies]
    return [
        body
        for body, addresses in zip(bodies, inside, strict=True)
        if not any(other < addresses for other in inside)
    ]
