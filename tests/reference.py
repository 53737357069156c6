"""The whole mathematics in plain NumPy: what every kernel is held to."""

import numpy as np


def matmul_int(codes, x):
    """codes (rows, cols) int8, x (..., cols) int8 -> (..., rows) int32.

    In double, which is exact up to 2^53 in any order, and for which NumPy has a fast product.
    """
    return (x.astype(np.float64) @ codes.astype(np.float64).T).astype(np.int32)


def quantize_activations(x):
    """x (..., cols) float32 -> q (..., cols) int8, a (...) float32."""
    largest = np.max(np.abs(x), axis=-1, initial=0)
    a = np.float32(127) / np.maximum(largest, np.float32(1e-5))
    return np.rint(x * a[..., None]).astype(np.int8), a


def reciprocal_scale(w):
    """One s for an array of float32: 1 / max(mean |w|, 1e-5)."""
    mean = np.float32(np.abs(w).sum(dtype=np.float64) / w.size)
    return np.float32(1) / np.maximum(mean, np.float32(1e-5))


def reciprocal_scales(w, per_row=False, group_size=None):
    """s of shape (), (rows,) or (rows, groups)."""
    if group_size is not None:
        starts = range(0, w.shape[1], group_size)
        return np.array([[reciprocal_scale(row[c : c + group_size]) for c in starts] for row in w], np.float32)
    if per_row:
        return np.array([reciprocal_scale(row) for row in w], np.float32)
    return reciprocal_scale(w)


def per_column(scale, shape, group_size=None):
    """Spread scales of shape (), (rows,) or (rows, groups) over the weight."""
    scale = np.asarray(scale, np.float32)
    if scale.ndim == 2:
        return np.repeat(scale, group_size, axis=1)[:, : shape[1]]
    return np.broadcast_to(scale.reshape(-1, 1), shape)


def ternarize(w, s, group_size=None):
    """w (rows, cols) float32 -> codes int8."""
    return np.clip(np.rint(w * per_column(s, w.shape, group_size)), -1, 1).astype(np.int8)


def matmul(codes, scale, x, group_size=None):
    """x (..., cols) float32 -> (..., rows) float32, in the order of operations of the core."""
    q, a = quantize_activations(x)
    factor = (np.float32(1) / a)[..., None]
    scale = np.asarray(scale, np.float32)
    if scale.ndim < 2:
        return matmul_int(codes, q).astype(np.float32) * (scale * factor)
    total = np.zeros((*x.shape[:-1], len(codes)), np.float32)
    for g in range(scale.shape[1]):
        cols = slice(g * group_size, (g + 1) * group_size)
        total += matmul_int(codes[:, cols], q[..., cols]).astype(np.float32) * scale[:, g]
    return total * factor


def dequantize(codes, scale, group_size=None):
    return codes.astype(np.float32) * per_column(scale, codes.shape, group_size)
