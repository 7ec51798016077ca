"""The CUDA kernels as plain C++ under csrc/cuda/emulator: built with g++, called on CPU tensors."""

from __future__ import annotations

import atexit
import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_bool, c_char_p, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from cuda_kernels.guarded import Operands, memory_of
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


class Options(ctypes.Structure):
    _fields_ = [
        ("dtype", c_int32),
        ("ieee", c_bool),
        ("splits", c_int32),
        ("tile", c_int32),
        ("overlaps", c_bool),
        ("tickets", c_void_p),
        ("workspace", c_void_p),
    ]


class Shape(ctypes.Structure):
    _fields_ = [
        (name, c_int64)
        for name in ("images", "height", "width", "out_height", "out_width", "stride", "padding")
    ] + [("scale", c_int64), ("padding_end", c_int64)]


class Image(ctypes.Structure):
    _fields_ = [("data", c_void_p)] + [
        (name, c_int64)
        for name in ("n_stride", "h_stride", "w_stride", "channels", "weight_offset")
    ]


class Weight(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int32),
        ("out_stride", c_int64),
        ("in_stride", c_int64),
        ("r_stride", c_int64),
        ("s_stride", c_int64),
        ("kernel", c_int32),
        ("block_stride", c_int64),
    ]


class Part(ctypes.Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class Shortcut(ctypes.Structure):
    _fields_ = [("x", Image), ("x2", Image), ("weight", Weight), ("bias", c_void_p)]


class ForwardArgs(ctypes.Structure):
    _fields_ = [
        ("options", Options),
        ("shape", Shape),
        ("x", Image),
        ("x2", Image),
        ("weight", Weight),
        ("bias", c_void_p),
        ("parts", c_int64),
        ("further", Part * 2),
        ("shortcut", Shortcut),
        ("activation", c_int32),
        ("gate", c_void_p),
        ("shift", c_void_p),
        ("residual", c_void_p),
        ("gate_stride", c_int64),
        ("shift_stride", c_int64),
        ("residual_stride", c_int64),
        ("gain", ctypes.c_float),
        ("y", c_void_p),
        ("y_stride", c_int64),
        ("moments", c_void_p),
        ("c_out", c_int64),
    ]


class GroupNormSource(ctypes.Structure):
    _fields_ = [
        ("c", c_int64),
        ("param_offset", c_int64),
        ("x", c_void_p),
        ("x_pixel_stride", c_int64),
        ("grad_y", c_void_p),
        ("grad_y_pixel_stride", c_int64),
        ("y", c_void_p),
        ("grad_x", c_void_p),
    ]


class GroupNormArgs(ctypes.Structure):
    _fields_ = [
        ("dtype", c_int32),
        ("param_dtype", c_int32),
        ("n", c_int64),
        ("pixels", c_int64),
        ("groups", c_int64),
        ("source_count", c_int64),
        ("sources", GroupNormSource * 2),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("eps", ctypes.c_double),
        ("silu", c_bool),
        ("mean", c_void_p),
        ("rstd", c_void_p),
        ("grad_weight", c_void_p),
        ("grad_bias", c_void_p),
        ("scale", c_void_p),
        ("shift", c_void_p),
        ("modulation_stride", c_int64),
        ("grad_scale", c_void_p),
        ("grad_shift", c_void_p),
        ("workspace", c_void_p),
    ]


class GroupNormMoments(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("classes", c_int64)]


class LayerNormArgs(ctypes.Structure):
    _fields_ = [
        *((name, c_int32) for name in ("dtype", "param_dtype", "modulation_dtype")),
        *((name, c_int64) for name in ("images", "rows", "channels", "run")),
        ("x", c_void_p),
        *((name, c_int64) for name in ("x_run_stride", "x_row_stride")),
        ("grad_y", c_void_p),
        *((name, c_int64) for name in ("grad_y_run_stride", "grad_y_row_stride")),
        *((name, c_void_p) for name in ("weight", "bias")),
        ("eps", ctypes.c_double),
        *((name, c_void_p) for name in ("scale", "shift")),
        ("modulation_stride", c_int64),
        *((name, c_void_p) for name in ("y", "grad_x", "mean", "rstd")),
        *((name, c_void_p) for name in ("grad_weight", "grad_bias", "grad_scale", "grad_shift")),
        ("workspace", c_void_p),
    ]


class AttentionTensor(ctypes.Structure):
    _fields_ = [("data", c_void_p)] + [
        (name, c_int64) for name in ("n_stride", "head_stride", "t_stride")
    ]


class AttentionArgs(ctypes.Structure):
    _fields_ = [
        ("dtype", c_int32),
        *((name, c_int64) for name in ("n", "heads", "t_q", "t_k", "d")),
        ("scale", ctypes.c_double),
        ("slots", c_int64),
        *((name, AttentionTensor) for name in ("q", "k", "v", "grad_out", "out")),
        ("lse", c_void_p),
        *((name, AttentionTensor) for name in ("grad_q", "grad_k", "grad_v")),
        ("workspace", c_void_p),
    ]


class ActivationArgs(ctypes.Structure):
    _fields_ = [
        ("dtype", c_int32),
        ("activation", c_int32),
        *((name, c_int64) for name in ("images", "rows", "columns")),
        ("z", c_void_p),
        ("z_stride", c_int64),
        ("gate", c_void_p),
        ("gate_stride", c_int64),
        ("residual", c_void_p),
        ("residual_stride", c_int64),
        ("grad_y", c_void_p),
        ("grad_y_stride", c_int64),
        *((name, c_void_p) for name in ("y", "grad_z", "grad_gate", "workspace")),
    ]


class LinearPart(ctypes.Structure):
    _fields_ = [
        ("weight", c_void_p),
        ("bias", c_void_p),
        *((name, c_int64) for name in ("out_stride", "in_stride", "c_out", "column")),
    ]


class LinearFusedArgs(ctypes.Structure):
    _fields_ = [
        ("dtype", c_int32),
        ("weight_dtype", c_int32),
        *((name, c_bool) for name in ("ieee", "silu", "overlaps")),
        ("x", c_void_p),
        *((name, c_int64) for name in ("x_stride", "rows", "c")),
        ("parts", ctypes.POINTER(LinearPart)),
        ("part_count", c_int64),
        ("shift", c_void_p),
        ("shift_stride", c_int64),
        ("y", c_void_p),
        ("y_stride", c_int64),
    ]


class SinusoidalArgs(ctypes.Structure):
    _fields_ = [
        ("dtype", c_int32),
        ("table_dtype", c_int32),
        ("t_type", c_int32),
        ("halves", c_bool),
        ("swapped", c_bool),
        ("freq_shift", ctypes.c_double),
        ("t", c_void_p),
        ("table", c_void_p),
        ("frequencies", c_void_p),
        *((name, c_int64) for name in ("t_stride", "n", "dim", "rows")),
        ("y", c_void_p),
    ]


class ResampleArgs(ctypes.Structure):
    _fields_ = [
        ("x", c_void_p),
        ("dtype", c_int32),
        *((name, c_int64) for name in ("images", "height", "width", "channels")),
        *((name, c_int64) for name in ("n_stride", "h_stride", "w_stride")),
        ("up", c_bool),
        ("gain", ctypes.c_double),
        ("taps", c_int32),
        ("ring", c_bool),
        ("residual", c_void_p),
        *((f"residual_{name}", c_int64) for name in ("n_stride", "h_stride", "w_stride")),
        ("y", c_void_p),
    ]


class GradXArgs(ctypes.Structure):
    _fields_ = [
        ("options", Options),
        ("shape", Shape),
        ("grad_y", Image),
        ("weight", Weight),
        ("parts", c_int64),
        ("part_stride", c_int64),
        ("grad_x", c_void_p),
        ("c_in", c_int64),
        ("c_in_offset", c_int64),
    ]


class GradWeightArgs(ctypes.Structure):
    _fields_ = [
        ("options", Options),
        ("shape", Shape),
        ("grad_y", Image),
        ("x", Image),
        ("x2", Image),
        ("grad_weight", Weight),
        ("grad_bias", c_void_p),
    ]


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
