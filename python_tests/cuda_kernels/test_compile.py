"""nvcc compiles the CUDA sources for every architecture within bounds, into the code meant."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from cuda_kernels import emulated

SECONDS, KILOBYTES = 90, 3 * 2**20  # of the processor and of memory, for one file
# Instructions that must be there: tensor core products, asynchronous copies, ldmatrix, and FMA.
TENSOR_CORES = ("HMMA", "LDGSTS", "LDSM")
# Products of warpgroups, bulk copies (tiled and im2col), mbarriers, registers moved between roles.
SM90A = ("HGMMA.64x128x16", "UTMALDG.4D.IM2COL", "UTMALDG.4D ", "SYNCS.PHASECHK", "USETMAXREG")
INSTRUCTIONS = {
    "attention": (),
    "attention_bf16": (*TENSOR_CORES, "MUFU.EX2"),
    "attention_fp16": (*TENSOR_CORES, "MUFU.EX2"),
    "attention_fp32": ("FFMA", "LDGSTS", "MUFU.EX2"),
    "attention_grad_bf16": (*TENSOR_CORES, "MUFU.EX2"),
    "attention_grad_fp16": (*TENSOR_CORES, "MUFU.EX2"),
    "attention_grad_fp32": ("FFMA", "LDGSTS", "MUFU.EX2"),
    "conv2d_bf16": TENSOR_CORES,
    "conv2d_fp16": TENSOR_CORES,
    "conv2d_fp32": (*TENSOR_CORES, "FFMA"),
    "conv2d_grad_weight_bf16": TENSOR_CORES,
    "conv2d_grad_weight_fp16": TENSOR_CORES,
    "conv2d_grad_weight_fp32": ("HMMA", "LDGSTS", "FFMA"),
    "conv2d_head": (*TENSOR_CORES, "FFMA"),
    "group_norm": ("MUFU.EX2",),
    "linear_fused": (*TENSOR_CORES, "FFMA", "LDG.E.128", "MUFU.EX2"),
    "sinusoidal_embedding": ("DFMA",),
    "conv2d": (),
    "conv2d_sm90": (),
    # On sm_90a; on others their kernels only trap.
    "conv2d_sm90_bf16": SM90A,
    "conv2d_sm90_fp16": SM90A,
}
pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")


def architectures() -> list[str]:
    """The default of CMakeLists.txt: "80-real", ..., "80-virtual"."""
    text = (emulated.ROOT / "CMakeLists.txt").read_text()
    return re.search(r'set\(DDSM_CUDA_ARCHITECTURES "([^"]+)"', text).group(1).split(";")


def gencode(architecture: str) -> str:
    number, kind = architecture.split("-")
    code = f"sm_{number}" if kind == "real" else f"compute_{number}"
    return f"-gencode=arch=compute_{number},code={code}"


def compile_measured(source: Path, output: Path, log: Path) -> tuple[float, int]:
    """Compile one file; return the processor's seconds and the kilobytes of the largest process."""
    include = f"-I{emulated.ROOT / 'csrc' / 'include'}"
    flags = ("-std=c++17", "-O3", "-DNDEBUG", "-Xcompiler=-fPIC", "-Xptxas=-v", include)
    targets = [gencode(architecture) for architecture in architectures()]
    command = ["nvcc", *flags, *targets, "-c", str(source), "-o", str(output)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, log.read_text()[-4000:]
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss


def cuobjdump() -> str | None:
    """The toolkit's disassembler, or the one that Triton carries."""
    found = shutil.which("cuobjdump")
    triton = find_spec("triton")
    if found or triton is None:
        return found
    carried = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(carried) if carried.exists() else None


def test_every_source_is_named():
    assert {p.stem for p in emulated.CUDA.glob("*.cu")} == set(INSTRUCTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("stem", sorted(INSTRUCTIONS))
def test_compiles_within_bounds(tmp_path, stem):
    output, log = tmp_path / f"{stem}.o", tmp_path / "log"
    seconds, kilobytes = compile_measured(emulated.CUDA / f"{stem}.cu", output, log)
    assert seconds < SECONDS
    assert kilobytes < KILOBYTES
    text = log.read_text()
    assert not re.search("C75(08|1[0-9])", text), "setmaxnreg is ignored or wgmma serialised"
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", text)
    assert set(spills) <= {("0", "0")}
    kernels = re.findall(r"Compiling entry function '(\S+)' for 'sm_(\w+)'", text)
    real = [a.split("-")[0] for a in architectures() if a.endswith("real")]
    if INSTRUCTIONS[stem]:
        assert {architecture for _, architecture in kernels} == set(real)
    tool = cuobjdump()
    if tool is None:
        return  # the resource report above needs no disassembler
    for architecture in real if INSTRUCTIONS[stem] else ():
        command = [tool, "-sass", "-arch", f"sm_{architecture}", str(output)]
        sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for instruction in INSTRUCTIONS[stem]:
            if INSTRUCTIONS[stem] is not SM90A or architecture == "90a":
                assert instruction in sass, f"no {instruction} for sm_{architecture}"
        assert not re.search(r"\b(LDL|STL)\b", sass), f"local memory is used on sm_{architecture}"
