"""The structs of runtime/csrc/kernels/kernels.h and capi/capi.h as ctypes sees them."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_bool, c_float, c_int32, c_int64

Floats, Bytes = POINTER(c_float), POINTER(ctypes.c_uint8)
Int64s, Int32s = POINTER(c_int64), POINTER(c_int32)


class NormArgs(Structure):
    _fields_ = [("kind", c_int32), ("eps", c_float), ("weight", Floats), ("bias", Floats)]


class LinearArgs(Structure):
    _fields_ = [
        ("x", Floats),
        ("rows", c_int64),
        ("k", c_int64),
        ("norm", NormArgs),
        ("format", c_int32),
        ("weights", Bytes),
        ("n", c_int64),
        ("bias", Floats),
        ("residual", Floats),
        ("activation", c_int32),
        ("gated", c_bool),
        ("y", Floats),
    ]


class HeadArgs(Structure):
    _fields_ = [
        ("linear", LinearArgs),
        ("rows", Int64s),
        ("m", c_int64),
        ("top", c_int64),
        ("softcap", c_float),
        ("values", Floats),
        ("ids", Int64s),
        ("log_sum", Floats),
        ("logits", Floats),
    ]


class EmbedArgs(Structure):
    _fields_ = [
        ("format", c_int32),
        ("weights", Bytes),
        ("n", c_int64),
        ("k", c_int64),
        ("ids", Int64s),
        ("rows", c_int64),
        ("scale", c_float),
        ("y", Floats),
    ]


class NormRowsArgs(Structure):
    _fields_ = [
        ("x", Floats),
        ("rows", c_int64),
        ("stride", c_int64),
        ("offset", c_int64),
        ("heads", c_int64),
        ("width", c_int64),
        ("per_head", c_bool),
        ("norm", NormArgs),
        ("residual", Floats),
        ("y", Floats),
    ]


class RopeTableArgs(Structure):
    _fields_ = [
        ("positions", Int64s),
        ("rows", c_int64),
        ("frequencies", Floats),
        ("pairs", c_int64),
        ("factor", c_float),
        ("table", Floats),
    ]


class KvLayer(Structure):
    _fields_ = [
        ("type", c_int32),
        ("capacity", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("base", Bytes),
    ]


class KvWriteArgs(Structure):
    _fields_ = [
        ("k", Floats),
        ("v", Floats),
        ("k_stride", c_int64),
        ("v_stride", c_int64),
        ("rows", c_int64),
        ("past", c_int64),
        ("cache", KvLayer),
        ("rope", Floats),
        ("pairs", c_int64),
    ]


class AttentionArgs(Structure):
    _fields_ = [
        ("kv", KvWriteArgs),
        ("q", Floats),
        ("q_stride", c_int64),
        ("heads", c_int64),
        ("positions", Int64s),
        ("ancestors", Int32s),
        ("depths", c_int64),
        ("scale", c_float),
        ("window", c_int64),
        ("softcap", c_float),
        ("sinks", Floats),
        ("relative", Floats),
        ("reach", c_int64),
        ("seen", c_int64),
        ("staged", c_int64),
        ("y", Floats),
    ]


class CacheArgs(Structure):
    _fields_ = [
        ("data", Bytes),
        ("bytes", c_int64),
        ("type", c_int32),
        ("capacity", c_int64),
        ("head_dim", c_int64),
        ("layers", c_int64),
        ("kv_heads", Int64s),
    ]


STRUCTS = {
    "linear": LinearArgs,
    "head": HeadArgs,
    "embed": EmbedArgs,
    "norm_rows": NormRowsArgs,
    "rope_table": RopeTableArgs,
    "kv_write": KvWriteArgs,
    "attention": AttentionArgs,
    "cache": CacheArgs,
}
