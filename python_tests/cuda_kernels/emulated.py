"""The CUDA kernels as plain C++ under csrc/cuda/emulator: built with g++, called on CPU tensors."""

from __future__ import annotations

import atexit
import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_char_p, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from cuda_kernels.guarded import Operands, memory_of
from cuda_kernels.structures import Image, Options, Shape, Weight
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "csrc" / "cuda"
TYPES = ("bf16", "fp16", "fp32")
SOURCES = (
    "activation.cu",
    "attention.cu",
    *(f"attention_{p}{t}.cu" for p in ("", "grad_") for t in TYPES),
    "group_norm.cu",
    "conv2d.cu",
    *(f"conv2d_{p}{t}.cu" for p in ("", "activated_", "grad_weight_") for t in TYPES),
    *(f"conv2d_sm90_{p}{t}.cu" for p in ("", "activated_") for t in TYPES[:2]),
    "conv2d_sm90.cu",
    "conv2d_head.cu",
    "layer_norm.cu",
    "linear_fused.cu",
    "resample.cu",
    "sinusoidal_embedding.cu",
)
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def compile_objects(folder: Path, sources: Iterable[Path], *flags: str) -> list[Path]:
    """Compile sources; those in a copy of csrc/cuda see that copy's headers."""
    objects = []
    for source in sources:
        objects.append(folder / f"{source.stem}.o")
        _compile("-c", "-x", "c++", str(source), "-o", str(objects[-1]), *flags)
    return objects


def link(folder: Path, objects: Iterable[Path], *libraries: str) -> Path:
    """One library of the objects; of what several define, the first one's is taken."""
    library = folder / "libemulated.so"
    _compile("-shared", "-Wl,-Bsymbolic", *map(str, objects), "-o", str(library), *libraries)
    return library


def _compile(*arguments: str) -> None:
    flags = ("-std=c++17", "-O1", "-fPIC", "-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas")
    include = f"-I{ROOT / 'csrc' / 'include'}"
    command = ["g++", *flags, include, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@cache
def objects() -> tuple[Path, ...]:
    """The emulator, the entry points and the kernels as they are in this source folder."""
    folder = Path(tempfile.mkdtemp(prefix="ddsm-emulated-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    own = sorted(Path(__file__).parent.glob("*.cpp"))
    emulator = sorted((CUDA / "emulator").glob("*.cpp"))
    sources = [*emulator, *own, *(CUDA / name for name in SOURCES)]
    return tuple(compile_objects(folder, sources))


@cache
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(link(objects()[0].parent, objects())))


def image(tensor: Tensor | None, weight_offset: int = 0) -> Image:
    """x [N, c, H, W] with adjacent channels, or no image."""
    if tensor is None:
        return Image()
    assert tensor.size(1) == 1 or tensor.stride(1) == 1
    n, _c, h, w = tensor.stride()
    return Image(tensor.data_ptr(), n, h, w, tensor.size(1), weight_offset)


def weight_of(tensor: Tensor) -> Weight:
    """A parameter [c_out_max, c_in_max, k, k] with any strides."""
    return Weight(tensor.data_ptr(), DTYPES[tensor.dtype], *tensor.stride(), tensor.size(2))


def shape_of(
    x: Tensor, kernel: int, stride: int, padding: int, upsample: bool, pad_end: bool = False
) -> Shape:
    scale, padding_end = 2 if upsample else 1, padding + pad_end
    n, _c, h, w = x.shape
    out = [(scale * size + padding + padding_end - kernel) // stride + 1 for size in (h, w)]
    return Shape(n, h, w, *out, stride, padding, scale, padding_end)


def call(
    name: str,
    args: ctypes.Structure,
    reads: Sequence[Tensor | None],
    writes: Sequence[Tensor | None],
    lib: ctypes.CDLL | None = None,
    more: Sequence[Any] = (),
) -> None:
    """Run one entry point with a workspace; raise RuntimeError with the fault it reports.

    Args:
        name: entry point of entry.cpp.
        args: its arguments, the workspace unset.
        reads: tensors that the kernels may read; the elements between strided ones too.
        writes: tensors that they may also write.
        lib: None: the kernels of this source folder.
        more: further arguments of the entry point.
    """
    lib = lib or library()
    assert getattr(lib, f"{name}_args_bytes")() == ctypes.sizeof(args)
    size = getattr(lib, f"{name}_bytes")
    size.restype, run = c_int64, getattr(lib, name)
    run.restype = c_char_p
    workspace = torch.full((int(size(ctypes.byref(args))) // 4,), torch.nan)
    # Those of norms, attention and activations have no options, their workspace is their own.
    getattr(args, "options", args).workspace = workspace.data_ptr()
    inputs = [tensor for tensor in reads if tensor is not None]
    outputs = [tensor for tensor in (*writes, workspace) if tensor is not None]
    operands = Operands([*inputs, *outputs])
    lib.forget_memory()
    for tensors, writable in ((inputs, 0), (outputs, 1)):
        for tensor in tensors:
            data, count = memory_of(tensor)
            lib.allow_memory(c_void_p(operands.address(data)), ctypes.c_uint64(count), writable)
    fault = run(ctypes.byref(operands.arguments(args)), *map(operands.arguments, more))
    if fault is not None:
        raise RuntimeError(fault.decode())
    operands.write_back()


def take_launches() -> list[str]:
    """The launches since the last call: "name blocks x blocks_y x threads", "+" if one overlaps."""
    library().take_launches.restype = c_char_p
    return library().take_launches().decode().splitlines()


def launches() -> list[tuple[str, bool]]:
    """Name of each kernel launched since the last call, and whether it overlaps the one before."""
    return [(line.split()[0], line.endswith("+")) for line in take_launches()]


@contextmanager
def hopper() -> Iterator[None]:
    """The device is one of compute capability 9.0, whose launches may overlap."""
    library().set_hopper(1)
    try:
        yield
    finally:
        library().set_hopper(0)


def options(dtype: torch.dtype, **more: Any) -> Options:
    return Options(dtype=DTYPES[dtype], **more)


def faulty_library(tmp_path, file: str, line: str, mistake: str, stem: str) -> ctypes.CDLL:
    """The emulated kernels, those of one source built with a mistake in a line."""
    copy = tmp_path / "cuda"
    shutil.copytree(CUDA, copy)
    source = copy / file
    text = source.read_text()
    assert line in text
    source.write_text(text.replace(line, mistake))
    faulty = compile_objects(tmp_path, [copy / f"{stem}.cu"])
    others = [o for o in objects() if o.name != f"{stem}.o"]
    return ctypes.CDLL(str(link(tmp_path, [*faulty, *others])))
