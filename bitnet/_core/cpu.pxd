from libc.stdint cimport uint32_t

# The features kernels may use now; ConfigurationError if BITNET_ISA asks for what cannot run.
cdef uint32_t allowed_features() except? 0
