"""Arguments of the entry points in entry.cpp, as the structures of csrc have them."""

from __future__ import annotations

import ctypes
from ctypes import c_bool, c_int32, c_int64, c_void_p


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
