"""Weights that multiply the same input, as one: queries, keys and values, or a gate and its partner."""

import numpy as np

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from bitnet._core.packing cimport PackedWeight, described_weight, new_weight
from bitnet._core.packings.contract cimport BITNET_PANEL_ROWS

from bitnet._core.packing import pack_codes


def fuse(weights):
    """Put the rows of several weights into one, which has a scale for each row, or for each of its groups.

    Bytes that follow one another in somebody's memory, as those of a mapped file, stay there.

    Parameters
    ----------
    weights : list of PackedWeight
        Of one number of columns.

    Returns
    -------
    PackedWeight
    """
    cdef PackedWeight first = weights[0], weight, fused
    cdef Py_ssize_t at = 0, rows = sum([weight.rows for weight in weights])
    sizes = [weight.group_size for weight in weights if weight.group_size is not None]
    size = min(sizes) if sizes else None
    name = first.packing if size is None else "i2"
    scale = np.concatenate([_spread(weight, size) for weight in weights])
    is_one = all([weight.packing == name for weight in weights])
    if not is_one or any([weight.rows % BITNET_PANEL_ROWS for weight in weights]):
        # A weight would begin within a panel of another.
        return pack_codes(np.concatenate([weight.unpack() for weight in weights]), scale, name, size)
    is_together = first.mapping is not None
    for weight in weights:
        is_together = is_together and weight.data == first.data + at
        at += weight.panels * weight.panel_bytes
    if is_together:
        fused = described_weight(rows, first.cols, scale, size, name)
        fused.data = first.data
        # Of the same memory, but over all weights; each of them keeps it alive.
        fused.mapping = _span(first.data, at, [(<PackedWeight>one).mapping for one in weights])
        return fused
    fused, at = new_weight(rows, first.cols, scale, size, name), 0
    for weight in weights:
        memcpy(fused.block.data + at, weight.data, weight.panels * weight.panel_bytes)
        at += weight.panels * weight.panel_bytes
    return fused


cdef _spread(PackedWeight weight, size):
    """The scales of a weight, one for each row, or for each group of so many columns."""
    if size is None:
        return np.broadcast_to(weight.scale, (weight.rows,))
    groups = -(-weight.cols // size)
    if weight.group_size is None:
        return np.broadcast_to(weight.scale.reshape(-1, 1), (weight.rows, groups))
    return np.repeat(weight.scale, weight.group_size // size, axis=1)[:, :groups]


cdef class _Span:
    """Read-only bytes of somebody's memory."""

    cdef const uint8_t *_data
    cdef Py_ssize_t _count
    cdef object _kept

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void *>self._data, self._count, 1, flags)


cdef _Span _span(const uint8_t *data, Py_ssize_t count, kept):
    cdef _Span span = _Span.__new__(_Span)
    span._data, span._count, span._kept = data, count, kept
    return span
