"""I2_S, bitnet.cpp's ternary type: four codes (weight + 1) a byte, and one float32 scale behind the codes.

Files have three layouts, and nothing in a file says which. All of them hold the same bytes a row (or four rows), so a
wrong one gives another model and no error:

- ``x86``, of all official files: elements 32 apart share a byte, the first in the highest bits; 128 elements a block.
- ``arm``, of bitnet.cpp built for Arm since 2025-11: elements 16 apart, 64 a block.
- ``rows4``, of bitnet.cpp built without its ``ACT_PARALLEL``: four successive rows share a byte, column by column.

`detect` compares what the layouts make of a weight with what is known of its columns from elsewhere. In a trained
model, columns differ in how many of their weights are zero, and that goes with the gain of the norm in front of the
layer and with the rows of the layers that make its input. Only in the right layout do the columns line up.

References
----------
.. [1] microsoft/BitNet, src/ggml-bitnet-mad.cpp (``quantize_i2_s``).
"""

import numpy as np

from bitnet.formats.base import need, quoted

__all__ = ["LAYOUTS", "TAIL", "codes_of", "detect", "pack", "scale_of", "zeros_of_columns"]

LAYOUTS = ("x86", "arm", "rows4")
TAIL = 32  # bytes behind the codes: the scale, and 28 that are not used
_BLOCK = {"x86": 128, "arm": 64}
_SHIFTS = np.array([6, 4, 2, 0], np.uint8)

# A correlation r of n columns that have nothing in common has a standard deviation of 1 / sqrt(n).
CLEAR, AHEAD = 6.0, 4.0  # standard deviations: of the best layout from chance, and from the second


def fits(layout, rows, cols):
    """Whether a weight of this shape can be in a layout."""
    return rows % 4 == 0 if layout == "rows4" else rows * cols % _BLOCK[layout] == 0


def _checked(layout, rows, cols, file, name):
    needed = {"x86": "so many elements that 128 divides them", "arm": "so many elements that 64 divides them",
              "rows4": "so many rows that 4 divides them"}[layout]  # fmt: skip
    need(fits(layout, rows, cols), file, f"the shape of {quoted(name)}", (rows, cols),
         f"{needed}, which I2_S in the layout '{layout}' has")  # fmt: skip


def codes_of(data, rows, cols, layout, file, name):
    """Unpack the codes of a weight.

    Parameters
    ----------
    data : ndarray of uint8, shape (rows * cols // 4,)
    rows, cols : int
    layout : str
        One of `LAYOUTS`.
    file, name : str
        For the error.

    Returns
    -------
    ndarray of int8, shape (rows, cols)
        -1, 0 or 1; the unused code 3 is 0, as bitnet.cpp takes it.
    """
    _checked(layout, rows, cols, file, name)
    if layout == "rows4":
        codes = data.reshape(rows // 4, 1, cols) >> _SHIFTS[:, None]
    else:
        codes = data.reshape(-1, 1, _BLOCK[layout] // 4) >> _SHIFTS[:, None]
    codes &= 3
    codes[codes == 3] = 1
    codes -= 1
    return codes.reshape(rows, cols).view(np.int8)


def pack(codes, scale):
    """Write a weight as official files have it.

    Parameters
    ----------
    codes : ndarray of int8, shape (rows, cols)
        128 divides the number of its elements.
    scale : float

    Returns
    -------
    ndarray of uint8, shape (rows * cols // 4 + 32,)
    """
    fields = (codes.reshape(-1, 4, 32) + np.int8(1)).view(np.uint8) << _SHIFTS[:, None]
    packed = np.bitwise_or.reduce(fields, 1).reshape(-1)
    return np.concatenate([packed, np.array([scale], "<f4").view(np.uint8), np.zeros(TAIL - 4, np.uint8)])


def scale_of(data, file, name):
    """Find the scale, which stands behind the codes."""
    scale = float(data[-TAIL : 4 - TAIL].copy().view("<f4")[0])
    need(np.isfinite(scale), file, f"the scale of {quoted(name)}", scale, "a finite number")
    return scale


def zeros_of_columns(data, rows, cols, layout):
    """Count the zeros of each column.

    Parameters
    ----------
    data : ndarray of uint8, shape (rows * cols // 4,)
    rows, cols : int
        128 divides `cols`.
    layout : str

    Returns
    -------
    ndarray of int64, shape (cols,)
    """
    if layout == "rows4":
        found = [(data.reshape(rows // 4, cols) >> shift & 3 == 1).sum(0) for shift in _SHIFTS]
        return np.sum(found, 0)
    strip = data.reshape(rows, -1)
    fields = np.stack([(strip >> shift & 3 == 1).sum(0) for shift in _SHIFTS])  # (field, byte)
    return fields.reshape(4, -1, _BLOCK[layout] // 4).transpose(1, 0, 2).reshape(cols)


def zeros_of_rows(data, rows, cols, layout):
    """Count the zeros of each row; of the layouts x86 and arm it is the same."""
    if layout == "rows4":
        strip = data.reshape(rows // 4, cols)
        return np.stack([(strip >> shift & 3 == 1).sum(1) for shift in _SHIFTS], 1).reshape(rows)
    strip = data.reshape(rows, -1)
    return np.sum([(strip >> shift & 3 == 1).sum(1) for shift in _SHIFTS], 0)


def detect(pairs):
    """Guess the layout of a file.

    Parameters
    ----------
    pairs : iterable of (callable, callable)
        Each a weight and something to compare it with: from the name of a layout, they give one number for each
        column of the weight, and as many from elsewhere.

    Returns
    -------
    layout : str
        The most likely one; ``"x86"`` where nothing tells.
    is_certain : bool
        Whether it is clearly so.
    """
    scores = dict.fromkeys(LAYOUTS, 0.0)
    count = 0
    for own, other in pairs:
        count += 1
        for layout in LAYOUTS:
            scores[layout] += _association(own(layout), other(layout))
    best = max(LAYOUTS, key=scores.get)
    second = max(score for layout, score in scores.items() if layout != best)
    scale = max(count, 1) ** 0.5
    is_certain = scores[best] > CLEAR * scale and scores[best] - second > AHEAD * scale
    return (best, True) if is_certain else ("x86", False)


def _association(own, other):
    """How far the rank correlation of two vectors is from chance, in standard deviations; of either sign."""
    a, b = (_ranks(np.abs(np.asarray(one, np.float64))) for one in (own, other))
    spread = a.std() * b.std()
    return 0.0 if spread == 0 else abs(((a - a.mean()) * (b - b.mean())).mean()) / spread * len(a) ** 0.5


def _ranks(x):
    """Ranks, the mean one where several are equal."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]
