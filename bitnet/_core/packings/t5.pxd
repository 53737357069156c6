from bitnet._core.packings.contract cimport Packing

cdef Packing T5
