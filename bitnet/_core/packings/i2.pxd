from bitnet._core.packings.contract cimport Packing

cdef Packing I2
