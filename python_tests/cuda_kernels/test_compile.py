"""nvcc compiles the CUDA sources for every architecture within bounds, into the code meant."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cuda_kernels import emulated, sass
from cuda_kernels.sass import Instruction

SECONDS, KILOBYTES = 90, 3 * 2**20  # of the processor and of memory, for one file
# Instructions that must be there: tensor core products, asynchronous copies, ldmatrix, and FMA.
TENSOR_CORES = ("HMMA", "LDGSTS", "LDSM")
# Products of warpgroups, bulk copies (tiled, im2col, out), mbarriers, registers moved between
# roles, and the waiting for the kernel before.
SM90A = (
    "HGMMA.64x128x16",
    "HGMMA.64x32x16",
    "UTMALDG.4D.IM2COL",
    "UTMALDG.4D ",
    "UTMASTG.4D ",
    "STG.E.128",
    "SYNCS.PHASECHK",
    "USETMAXREG",
    "ACQBULK",
    "PREEXIT",
)
INSTRUCTIONS = {
    "activation": ("MUFU.EX2", "MUFU.RCP", "LDG.E.128", "STG.E.128"),
    "attention": (),
    "attention_bf16": (*TENSOR_CORES, "MUFU.EX2"),
    "attention_fp16": (*TENSOR_CORES, "MUFU.EX2"),
    "attention_fp32": ("FFMA", "LDGSTS", "MUFU.EX2"),
    "attention_grad_bf16": (*TENSOR_CORES, "MUFU.EX2"),
    "attention_grad_fp16": (*TENSOR_CORES, "MUFU.EX2"),
    "attention_grad_fp32": ("FFMA", "LDGSTS", "MUFU.EX2"),
    "conv2d_activated_bf16": (*TENSOR_CORES, "MUFU.EX2", "MUFU.RCP"),
    "conv2d_activated_fp16": (*TENSOR_CORES, "MUFU.EX2", "MUFU.RCP"),
    "conv2d_activated_fp32": (*TENSOR_CORES, "FFMA", "MUFU.EX2", "MUFU.RCP"),
    "conv2d_bf16": TENSOR_CORES,
    "conv2d_fp16": TENSOR_CORES,
    "conv2d_fp32": (*TENSOR_CORES, "FFMA"),
    "conv2d_grad_weight_bf16": TENSOR_CORES,
    "conv2d_grad_weight_fp16": TENSOR_CORES,
    "conv2d_grad_weight_fp32": ("HMMA", "LDGSTS", "FFMA"),
    "conv2d_head": (*TENSOR_CORES, "FFMA"),
    "resample": ("LDG.E.128", "STG.E.128"),
    "layer_norm": ("MUFU.RSQ64H", "SHFL.IDX", "LDG.E.128", "STG.E.128"),
    "linear_fused": (*TENSOR_CORES, "FFMA", "LDG.E.128", "MUFU.EX2"),
    "sinusoidal_embedding": ("DFMA",),
    "group_norm": ("MUFU.EX2", "MUFU.RCP", "LDG.E.128", "STG.E.128"),
    "conv2d": (),
    "conv2d_sm90": (),
    # On sm_90a; on others their kernels only trap.
    "conv2d_sm90_bf16": SM90A,
    "conv2d_sm90_fp16": SM90A,
    "conv2d_sm90_activated_bf16": SM90A,
    "conv2d_sm90_activated_fp16": SM90A,
}
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
needs_disassembler = pytest.mark.skipif(
    sass.tool() is None, reason="cuobjdump is not installed (pip install nvidia-cuda-cuobjdump)"
)
Kernels = dict[str, list[Instruction]]


def check_group_norm(kernels: Kernels) -> None:
    """The row loops of group norm's apply: no shared memory, few instructions a number read."""
    # float32 numbers take twice the time of memory, and a correction of the quotient. What scale
    # and shift change is before the loop.
    for kernel, loads_a_store, rows in (
        ("23group_norm_apply_kernel", 1, 4),
        ("28group_norm_apply_down_kernel", 4, 2),
    ):
        for instance, numbers, most in (
            ("INS_8BFloat16ELi8E", 8, 12),
            ("INS_7Float16ELi8E", 8, 12),
            ("IfLi4E", 4, 13 if rows == 4 else 14),
        ):
            (name,) = [k for k in kernels if kernel + instance in k]
            bodies = sass.loops(kernels[name], "STG.E.128")
            assert len(bodies) == 2, f"{name}: not one loop with SiLU and one without"
            for body in bodies:
                names = [instruction.name for instruction in body]
                loads, stores = names.count("LDG.E.128"), names.count("STG.E.128")
                assert loads == loads_a_store * stores, f"{name}: {loads} loads, {stores} stores"
                assert stores >= rows, f"{name}: rows in flight"
                assert not any(n.startswith(("LDS", "STS")) for n in names), name
                per_number = len(body) / (loads * numbers)
                assert per_number <= most, f"{name}: {per_number:.1f} instructions a number"


def check_resample(kernels: Kernels) -> None:
    """A thread's packs all at a time: one read and four written, or the other way round."""
    for kernel, loads, stores in (("resample_up", 1, 4), ("resample_down", 4, 1)):
        for instance in ("INS_8BFloat16ELi8E", "INS_7Float16ELi8E", "IfLi4E"):
            (name,) = [k for k in kernels if f"{kernel}_kernel{instance}" in k]
            names = [instruction.name for instruction in kernels[name]]
            found = [names.count(f"{kind}.E.128") for kind in ("LDG", "STG")]
            assert found == [loads, stores], f"{name}: {found[0]} loads, {found[1]} stores"
            assert len(names) <= 200, f"{name}: {len(names)} instructions"


def check_layer_norm(kernels: Kernels) -> None:
    """A row that is kept in registers is read once: all of it before its first sum."""
    for held in (2, 4, 8):
        for instance in ("INS_8BFloat16ELi8E", "INS_7Float16ELi8E", "IfLi4E"):
            (name,) = [k for k in kernels if f"17layer_norm_kernel{instance}Li{held}E" in k]
            names = [instruction.name for instruction in kernels[name]]
            before = names[: names.index("SHFL.IDX")]
            assert before.count("LDG.E.128") == held, f"{name}: not {held} loads"
            assert names.count("STG.E.128") == held, f"{name}: not {held} stores"


# What is checked of a source's kernels beyond INSTRUCTIONS, for each architecture.
CHECKS: dict[str, Callable[[Kernels], None]] = {
    "group_norm": check_group_norm,
    "layer_norm": check_layer_norm,
    "resample": check_resample,
}


def architectures() -> list[str]:
    """All that CMakeLists.txt names: "80-real", ..., "80-virtual"."""
    text = (emulated.ROOT / "CMakeLists.txt").read_text()
    return re.search(r'set\(DDSM_CUDA_ALL_ARCHITECTURES "([^"]+)"', text).group(1).split(";")


def gencode(architecture: str) -> str:
    number, kind = architecture.split("-")
    code = f"sm_{number}" if kind == "real" else f"compute_{number}"
    return f"-gencode=arch=compute_{number},code={code}"


# Its own process starts the command: one started here would count our memory as its own, as Linux
# keeps the largest of a process from before it became another program.
MEASURE = """
import resource, subprocess, sys
log, *command = sys.argv[1:]
code = subprocess.run(command, stdout=open(log, "w"), stderr=subprocess.STDOUT).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(code)
"""


def compile_measured(source: Path, output: Path, log: Path) -> tuple[float, int]:
    """Compile one file; return the processor's seconds and the kilobytes of the largest process."""
    include = f"-I{emulated.ROOT / 'csrc' / 'include'}"
    # The targets two at a time.
    flags = ("-std=c++17", "-O3", "-DNDEBUG", "-Xcompiler=-fPIC", "-Xptxas=-v", "-t2", include)
    targets = [gencode(architecture) for architecture in architectures()]
    command = ["nvcc", *flags, *targets, "-c", str(source), "-o", str(output)]
    measured = [sys.executable, "-S", "-c", MEASURE, str(log), *command]
    done = subprocess.run(measured, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, log.read_text()[-4000:]
    seconds, kilobytes = done.stdout.split()
    return float(seconds), int(kilobytes)


@pytest.fixture(scope="module")
def compiled():
    """Compiles a source once: its object file, what nvcc printed, seconds and kilobytes."""
    with TemporaryDirectory() as folder:

        @cache
        def compile_stem(stem: str) -> tuple[Path, str, float, int]:
            output, log = (Path(folder) / f"{stem}.{end}" for end in ("o", "log"))
            used = compile_measured(emulated.CUDA / f"{stem}.cu", output, log)
            return output, log.read_text(), *used

        yield compile_stem


def real_architectures() -> list[str]:
    return [a.split("-")[0] for a in architectures() if a.endswith("real")]


def test_every_source_is_named():
    assert {p.stem for p in emulated.CUDA.glob("*.cu")} == set(INSTRUCTIONS)
    assert set(CHECKS) <= set(INSTRUCTIONS)


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("stem", sorted(INSTRUCTIONS))
def test_compiles_within_bounds(compiled, stem):
    _, text, seconds, kilobytes = compiled(stem)
    assert seconds < SECONDS
    assert kilobytes < KILOBYTES
    assert not re.search("C75(08|1[0-9])", text), "setmaxnreg is ignored or wgmma serialised"
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", text)
    assert set(spills) <= {("0", "0")}
    kernels = re.findall(r"Compiling entry function '(\S+)' for 'sm_(\w+)'", text)
    if INSTRUCTIONS[stem]:
        assert {architecture for _, architecture in kernels} == set(real_architectures())


@pytest.mark.slow
@needs_nvcc
@needs_disassembler
@pytest.mark.parametrize("stem", [stem for stem in sorted(INSTRUCTIONS) if INSTRUCTIONS[stem]])
def test_has_the_instructions_meant(compiled, stem):
    for architecture in real_architectures():
        text = sass.disassemble(compiled(stem)[0], architecture)
        for instruction in INSTRUCTIONS[stem]:
            if INSTRUCTIONS[stem] is not SM90A or architecture == "90a":
                assert instruction in text, f"no {instruction} for sm_{architecture}"
        assert not re.search(r"\b(LDL|STL)\b", text), f"local memory is used on sm_{architecture}"
        if stem in CHECKS:
            CHECKS[stem](sass.kernels(text))


# As cuobjdump prints it: an outer loop, in it one with a store, and a branch forward.
SAMPLE = """
                Function : _ZN4ddsm5firstE
        .headerflags    @"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                 /* 0x00000a00ff017b82 */
                                                                          /* 0x000fe20000000800 */
        /*0010*/                   MOV R2, 0x100 ;                        /* 0x0000010000027802 */
        /*0020*/              @!P0 BRA 0x60 ;                             /* 0x0000000000108947 */
        /*0030*/                   LDS R3, [R2] ;                         /* 0x0000000002037984 */
        /*0040*/               @P1 STG.E.128 desc[UR4][R4.64], R8 ;       /* 0x0000000804001986 */
        /*0050*/              @!P2 BRA 0x30 ;                             /* 0xfffffffc00f4a947 */
        /*0060*/              @UP0 BRA 0x10 ;                             /* 0xfffffffc00e80947 */
        /*0070*/                   EXIT ;                                 /* 0x000000000000794d */
                Function : _ZN4ddsm6secondE
        /*0000*/                   EXIT ;                                 /* 0x000000000000794d */
"""


def test_loops_are_found():
    kernels = sass.kernels(SAMPLE)
    assert [len(kernel) for kernel in kernels.values()] == [8, 1]
    first = kernels["_ZN4ddsm5firstE"]
    (body,) = sass.loops(first, "STG.E.128")
    assert [i.name for i in body] == ["LDS", "STG.E.128", "BRA"]
    (outer,) = sass.loops(first, "MOV")
    assert [i.address for i in outer] == list(range(0x10, 0x70, 0x10))
    assert sass.loops(first, "EXIT") == []
