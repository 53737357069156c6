"""Rows of test_raises.py for native memory."""

import ctypes
import resource

from bitnet._core import blocks, memory
from bitnet._core.memory import HybridMemoryPool
from bitnet._core.probe import ReadBandwidth
from bitnet.config import MemoryPoolConfig
from bitnet.debugging import debug


def freed():
    handle = HybridMemoryPool().allocate(10)
    handle.free()
    return handle


def with_view():
    pool = HybridMemoryPool()
    handle = pool.allocate(10)
    view = memoryview(handle)
    try:
        pool.resize(handle, 20)
    finally:
        view.release()


def damaged():
    handle = HybridMemoryPool(MemoryPoolConfig(guards=True)).allocate(10)
    ctypes.c_uint8.from_address(handle.address + 12).value = 1
    handle.free()


def with_live_blocks():
    pool = HybridMemoryPool()
    handle = pool.allocate(10, tag="a")
    pool.reset()
    return handle


def refused(**setting):
    pool = HybridMemoryPool()
    for name, value in setting.items():
        setattr(pool, name, value)


# Memory for pools themselves runs out.
WITHOUT_MEMORY = f"""
import resource
from bitnet._core.memory import HybridMemoryPool
used = int(open('/proc/self/statm').read().split()[0]) * {resource.getpagesize()}
_, most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), most))
pools = []
try:
    while len(pools) < 5000:
        pools.append(HybridMemoryPool())
except MemoryError:
    pools.clear()
    raise
"""

ROWS = [
    ("_core/blocks.pyx", "TypeError", blocks.Block, "a Block is made by bitnet._core.memory.new_block()"),
    ("_core/blocks.pyx", "TypeError", blocks.MemoryHandle, "a MemoryHandle is made by HybridMemoryPool.allocate()"),
    ("_core/blocks.pyx", "MemoryError.freed", lambda: memoryview(freed()),
     "cannot read a block of 10 B that was freed"),
    ("_core/blocks.pyx", "MemoryError.freed", lambda: freed().free(), "cannot free a block of 10 B that was freed"),
    ("_core/blocks.pyx", "MemoryError.corrupted", damaged,
     "a block of 10 B was written to beyond its end, at byte 12 from its beginning"),
    ("_core/blocks.pyx", "ShapeError.too_large", lambda: HybridMemoryPool().allocate(10).numpy(shape=(3, 4)),
     "the size of (3, 4) x uint8 is 12; the limit is 10 bytes"),
    ("_core/blocks.pyx", "ConfigurationError.value", lambda: HybridMemoryPool().allocate(10).numpy(shape=(-1, 2)),
     "MemoryHandle.numpy.shape is (-1, 2); it must be of numbers from 0 on"),
    ("_core/blocks.pyx", "ConfigurationError.value", lambda: HybridMemoryPool().allocate(10).numpy(object),
     "MemoryHandle.numpy.dtype is dtype('O'); it must be of numbers, which have a size"),
    ("_core/blocks.pyx", "ConfigurationError.value", lambda: HybridMemoryPool(5),
     "HybridMemoryPool.config is 5; it must be a MemoryPoolConfig or None"),
    ("_core/memory.pyx", "ConfigurationError.value", lambda: refused(limit=0),
     "HybridMemoryPool.limit is 0; it must be a whole number of bytes above 0, or None"),
    ("_core/memory.pyx", "ConfigurationError.choice", lambda: refused(tracking="all"),
     "HybridMemoryPool.tracking is 'all'; it must be one of 'off', 'counts', 'tracebacks'"),
    ("_core/memory.pyx", "ConfigurationError.value", lambda: HybridMemoryPool().allocate(1, alignment=3),
     "HybridMemoryPool.allocate.alignment is 3; it must be a power of two from 1 to 2097152"),
    ("_core/memory.pyx", "MemoryError.foreign",
     lambda: HybridMemoryPool().deallocate(HybridMemoryPool().allocate(1)),
     "a block of 1 B belongs to another pool; give it to that one, or use its free()"),
    ("_core/memory.pyx", "MemoryError.foreign",
     lambda: HybridMemoryPool().resize(HybridMemoryPool().allocate(1), 2),
     "a block of 1 B belongs to another pool; give it to that one, or use its free()"),
    ("_core/memory.pyx", "MemoryError.has_views", with_view,
     "cannot resize a block of 10 B while a view of it lives; delete that first"),
    ("_core/memory.pyx", "MemoryError.overflow", lambda: memory.new_block(-1),
     "cannot allocate -1 bytes for a block: the size does not fit in an address"),
    ("_core/memory.pyx", "MemoryError.overflow", lambda: HybridMemoryPool().allocate(1 << 64),
     "cannot allocate 18446744073709551616 bytes for a block: the size does not fit in an address"),
    ("_core/memory.pyx", "MemoryError.limit", lambda: HybridMemoryPool(MemoryPoolConfig(limit=5)).allocate(6),
     "cannot allocate 6 B for a block: 0 B of the pool's limit of 5 B are in use; free some, or raise the limit"),
    ("_core/memory.pyx", "MemoryError.allocation", lambda: memory.new_block(1 << 60, "a test"),
     "cannot allocate 1 EiB for a test: the operating system refused"),
    ("_core/memory.pyx", "MemoryError.live_blocks", with_live_blocks,
     "cannot reset the pool while a block is live (a: 10 B)"),
    ("_core/probe.pyx", "ShapeError.too_small", lambda: ReadBandwidth(block=HybridMemoryPool().allocate(5)),
     "the block to read is 5; the least is 1048576 bytes"),
    ("debugging.py", "ConfigurationError.choice", lambda: debug("loud").__enter__(),
     "level is 'loud'; it must be one of 'trace', 'debug', 'info', 'warning', 'error'"),
    ("_core/pressure.py", "ConfigurationError.value",
     lambda: HybridMemoryPool().register_pressure_callback(2, print),
     "register_pressure_callback.level is 2; it must be a share above 0 and at most 1"),
    ("_core/pressure.py", "ConfigurationError.value",
     lambda: HybridMemoryPool().register_pressure_callback(1, 5),
     "register_pressure_callback.function is 5; it must be callable"),
]  # fmt: skip
