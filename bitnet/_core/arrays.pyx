"""Checks of the arrays that come in from Python: one clear error each."""

import operator
import sys

import numpy as np

from bitnet.errors import ConfigurationError, ShapeError, TensorError

GROUP_SIZES = (64, 128)
"""Numbers of columns that may share a scale."""


def checked(array, what, dtype):
    """Hold an array to a dtype and to C order.

    Parameters
    ----------
    array : ndarray
    what : str
        Its name in an error.
    dtype : numpy.dtype or type

    Returns
    -------
    ndarray
        `array` itself.

    Raises
    ------
    TensorError
        If it is no array, has another dtype (or byte order), or is not C-contiguous and aligned.
    """
    # Matrices never lose a dimension, and masked arrays would lose their mask.
    if not isinstance(array, np.ndarray) or isinstance(array, np.matrix) or _is_masked(array):
        raise TensorError.not_an_array(what, array)
    if array.dtype != dtype:
        raise TensorError.dtype(what, np.dtype(dtype), array.dtype)
    if not array.flags.c_contiguous:
        raise TensorError.not_contiguous(what, array.shape, array.strides)
    if not array.flags.aligned:
        raise TensorError.not_aligned(what, array.dtype)
    return array


cdef bint _is_masked(array):
    masked = sys.modules.get("numpy.ma")  # which NumPy imports when it is asked for; without it there is no such array
    return masked is not None and isinstance(array, masked.MaskedArray)


def checked_matrix(array, what, dtype):
    """Hold an array to be a `checked` matrix with at least one row and one column."""
    checked(array, what, dtype)
    if array.ndim != 2:
        raise ShapeError.dimensions(what, "(rows, cols)", array.shape)
    if array.size == 0:
        raise ShapeError.empty(what, array.shape)
    return array


def checked_output(out, shape, dtype, *inputs):
    """Hold an output array to a shape, or make one.

    Parameters
    ----------
    out : ndarray or None
    shape : tuple of int
    dtype : numpy.dtype or type
    *inputs : ndarray
        What is read while `out` is written.

    Returns
    -------
    ndarray

    Raises
    ------
    TensorError
        If `out` is not `checked`, is read-only or shares memory with an input.
    ShapeError
        If it has another shape.
    """
    if out is None:
        return np.empty(shape, dtype)
    checked(out, "out", dtype)
    if out.shape != shape:
        raise ShapeError.mismatch("out", shape, out.shape)
    if not out.flags.writeable:
        raise TensorError.read_only("out")
    if any(np.may_share_memory(out, array) for array in inputs):
        raise TensorError.overlap("out", "an input")
    return out


def as_numbers(value, what):
    """Copy a number, or an array of numbers, to float32.

    Parameters
    ----------
    value : float or array of float
    what : str
        Its name in an error.

    Returns
    -------
    ndarray of float32
        C-contiguous; infinite where a number is beyond float32.

    Raises
    ------
    TensorError
        If it is made of something else.
    """
    try:
        numbers = np.array(value, order="C")
    except ValueError:  # ragged
        raise TensorError.not_numbers(what, value) from None
    if numbers.dtype.kind not in "iuf":
        raise TensorError.not_numbers(what, value)
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)


def checked_group_size(group_size):
    """Hold a number of columns that share a scale to those there are.

    Parameters
    ----------
    group_size : int or None

    Returns
    -------
    int or None

    Raises
    ------
    ConfigurationError
        If it is neither None nor one of `GROUP_SIZES`.
    """
    if group_size is None:
        return None
    try:
        size = operator.index(group_size)
    except TypeError:
        size = 0
    if size not in GROUP_SIZES:
        raise ConfigurationError.choice("group_size", group_size, GROUP_SIZES)
    return size
