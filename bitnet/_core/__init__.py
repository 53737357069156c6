"""The compiled core. Who uses whom, top down::

    program ─▶ builder, ops ─▶ kernels/ops*.h                          a forward pass, and its vector operations
       │
    matmul ─▶ packing ─▶ packings/i2, packings/t5 ─▶ kernels/*.h      the products
       │         └─▶ source ─▶ quant ─▶ kernels/quant*.h               what to pack; numbers to codes
       └─▶ quant, threads, memory, arrays                             rows to int8, work to threads
    cpu          what may run here: every table of kernels is read through it
    errors       the only Python module of ours that the core imports

Nothing here is public: `bitnet.TernaryWeight` and the functions of `bitnet.quant` are the faces.
"""
