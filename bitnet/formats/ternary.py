"""Scales of ternary numbers: the fewest that say it all, and those of floats that are ternary already."""

import numpy as np

__all__ = ["codes_of_floats", "merged_scales"]

GROUPS = (128, 64)  # columns that may share a scale


def merged_scales(scales, cols):
    """Merge the scales of runs of columns where several are the same.

    Parameters
    ----------
    scales : ndarray of float32, shape (rows, runs)
        0 for runs without a weight, which any scale fits.
    cols : int
        Columns of a run.

    Returns
    -------
    scale : ndarray of float32, shape (), (rows,) or (rows, groups)
    group_size : int or None
        64 or 128 where the scale has a shape of (rows, groups).
    """
    one = _common(scales.reshape(1, -1))
    if one is not None:
        return one[0], None
    rows = _common(scales)
    if rows is not None:
        return rows, None
    if cols < GROUPS[0] * 2 and scales.shape[1] % 2 == 0:
        pairs = _common(scales.reshape(-1, 2))
        if pairs is not None:
            return pairs.reshape(len(scales), -1), 2 * cols
    size = next(size for size in GROUPS if cols % size == 0)
    return np.repeat(scales, cols // size, axis=1), size


def _common(scales):
    """Of each row the number that is not 0, or 0; None where a row has several."""
    largest, smallest = scales.max(1), scales.min(1)
    value = np.where(largest > 0, largest, smallest)
    return value if ((scales == value[:, None]) | (scales == 0)).all() else None


def codes_of_floats(w):
    """Find codes and scales of floats that are ternary as they stand.

    Parameters
    ----------
    w : ndarray of float32, shape (rows, cols)

    Returns
    -------
    tuple or None
        Codes, scale and group_size as of `merged_scales`; None if the floats are not ternary in groups of 64 columns.
    """
    rows, cols = w.shape
    magnitude = np.abs(w)
    for size in (cols, 128, 64):
        if cols % size:
            continue
        groups = magnitude.reshape(rows, -1, size)
        scales = groups.max(2)
        if not np.isfinite(scales).all():
            return None
        if ((groups == scales[:, :, None]) | (groups == 0)).all():
            break
    else:
        return None
    scale, group_size = merged_scales(scales, size) if size != cols else (_common(scales.reshape(1, -1)), None)
    if group_size is None and size == cols:
        scale = scales[:, 0] if scale is None else scale[0]
    return np.sign(w).astype(np.int8), scale, group_size
