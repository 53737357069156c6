"""The vector operations of a forward pass: which kernels are in use, and a face for tests and for the curious.

``kernels/ops_kernel.h`` says what each computes. They have the same bits on every instruction set.
"""

import numpy as np

from libc.stdint cimport uint32_t

from bitnet._core.cpu cimport allowed_features

from bitnet._core.arrays import checked, checked_matrix
from bitnet.errors import ShapeError

cdef extern from "kernels/ops.h":
    const bitnet_ops OPS_KERNELS[]

GATES = {"relu2": OPS_RELU2, "silu": OPS_SILU, "gelu": OPS_GELU, "gelu_pytorch_tanh": OPS_GELU_TANH}
"""The functions of gates, by their names in a ``config.json``."""


cdef const bitnet_ops *vector_ops() except NULL:
    cdef uint32_t allowed = allowed_features()
    cdef const bitnet_ops *ops = OPS_KERNELS
    while ops.needs & allowed != ops.needs:
        ops += 1
    return ops


def kernel_name():
    """Name the instruction set of the vector operations in use.

    Returns
    -------
    str
    """
    return vector_ops().isa.decode()


def rms_norm(x, gain, float eps):
    """Divide each row by the root of its mean square, and multiply by a gain.

    Parameters
    ----------
    x : ndarray of float32, shape (tokens, n)
    gain : ndarray of float32, shape (n,)
    eps : float
        Added to the mean square.

    Returns
    -------
    ndarray of float32, shape (tokens, n)
    """
    cdef const float[:, ::1] rows = checked_matrix(x, "x", np.float32)
    if checked(gain, "gain", np.float32).shape != x.shape[1:]:
        raise ShapeError.mismatch("gain", x.shape[1:], gain.shape)
    cdef const float[::1] gains = gain
    y = np.empty_like(x)
    cdef float[:, ::1] out = y
    cdef const bitnet_ops *ops = vector_ops()
    cdef Py_ssize_t t
    for t in range(rows.shape[0]):
        ops.rms_norm(&rows[t, 0], &gains[0], eps, rows.shape[1], &out[t, 0])
    return y


def gate(name, x, up):
    """Apply a gate's function, and multiply.

    Parameters
    ----------
    name : str
        A key of `GATES`.
    x, up : ndarray of float32, shape (tokens, n)

    Returns
    -------
    ndarray of float32, shape (tokens, n)
        ``function(x) * up``.
    """
    cdef const float[:, ::1] rows = checked_matrix(x, "x", np.float32)
    if checked(up, "up", np.float32).shape != x.shape:
        raise ShapeError.mismatch("up", x.shape, up.shape)
    cdef const float[:, ::1] others = up
    y = np.empty_like(x)
    cdef float[:, ::1] out = y
    cdef int function = GATES[name]
    cdef const bitnet_ops *ops = vector_ops()
    cdef Py_ssize_t t
    for t in range(rows.shape[0]):
        ops.gate(function, &rows[t, 0], &others[t, 0], rows.shape[1], &out[t, 0])
    return y


def to_half(x):
    """Round floats to float16, halves to even.

    Parameters
    ----------
    x : ndarray of float32, shape (tokens, n)

    Returns
    -------
    ndarray of float16, shape (tokens, n)
    """
    cdef const float[:, ::1] rows = checked_matrix(x, "x", np.float32)
    y = np.empty(x.shape, np.uint16)
    cdef unsigned short[:, ::1] out = y
    cdef const bitnet_ops *ops = vector_ops()
    cdef Py_ssize_t t
    for t in range(rows.shape[0]):
        ops.store(OPS_FLOAT16, &rows[t, 0], rows.shape[1], &out[t, 0])
    return y.view(np.float16)
