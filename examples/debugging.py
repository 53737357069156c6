"""Find leaks, read errors, time operations, and trace: the instruments that are built in.

python examples/debugging.py
"""

import logging

import numpy as np

import bitnet

logging.basicConfig(format="%(levelname)s %(message)s")
pool = bitnet.HybridMemoryPool.instance()

# Was memory left behind? Compare what is live before and after.
before = pool.get_stats().allocated
kept = [bitnet.TernaryWeight.from_float(np.ones((256, 256), np.float32)) for _ in range(2)]
print("bytes left:", pool.get_stats().allocated - before)

# Which memory, and by whose hand?
with pool.track(tracebacks=True) as tracker:
    cache = [pool.allocate(1 << n, tag="cache") for n in range(3)]
    cache.pop()
print(tracker.report())

# Errors tell what happened, walk to their causes, and can be told apart.
x = np.ones(256, np.float32)
wrong = [(np.ones(255, np.float32), 1), (x * np.inf, 1), (x, 0), (x, 10**9)]
for given, size in wrong:
    try:
        with bitnet.ErrorContext.during("example", "multiply and allocate", size=size):
            kept[0].matmul(given)
            bitnet.HybridMemoryPool(bitnet.MemoryPoolConfig(limit=1000)).allocate(10**6 if size else -1)
    except bitnet.MemoryError as error:
        print("memory:", error)
    except bitnet.DeviceError as error:
        print("device:", error)
    except bitnet.QuantizationError as error:
        print("quantisation:", error)
        print(error.to_report())
    except bitnet.BitNetError as error:
        print("other:", error)
        for cause in error.chain()[1:]:
            print("  because of", cause)

# What is slow? From 10 ms on (here from 0) it is logged.
total = bitnet.time_operation("sum", sum, range(1000))
with bitnet.time_operation("multiply", threshold_s=0) as timed:
    kept[0].matmul(x)
print(f"sum {total}, product in {timed.seconds * 1e6:.0f} us")


@bitnet.time_operation("quantise", threshold_s=0)
def quantise():
    return bitnet.quantize_activations(x)


quantise()

# Traces cost nothing until debug mode is on: within `bitnet.debug()`, or with BITNET_DEBUG=1.
bitnet.debug_trace("not seen, not computed: %s", lambda: 1 / 0)
with bitnet.debug():
    bitnet.debug_trace("the largest code is %s", lambda: np.abs(bitnet.quantize_activations(x)[0]).max())
