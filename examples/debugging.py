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


def ask_a_device():
    try:
        raise OSError("the bus does not answer")  # as a driver of yours may say
    except OSError as cause:
        raise bitnet.DeviceError("the accelerator is gone") from cause


wrong = {
    "one column is missing": lambda: kept[0].matmul(x[1:]),
    "a number is none": lambda: kept[0].matmul(x * np.inf),
    "too much for a pool": lambda: bitnet.HybridMemoryPool(bitnet.MemoryPoolConfig(limit=1000)).allocate(10**6),
    "a device of your own": ask_a_device,
}
for what, act in wrong.items():
    try:
        with bitnet.ErrorContext.during("example", what, rows=256):
            act()
    except bitnet.BitNetError as error:
        if isinstance(error, bitnet.MemoryError):
            print("memory:", error)  # free some, and try again
        elif isinstance(error, bitnet.DeviceError):
            print("device:", error)  # go on without it
        elif isinstance(error, bitnet.QuantizationError):
            print("quantisation:", error)  # look where the number came from
        else:
            print("other:", error)
        for cause in error.chain()[1:]:
            print("  because of:", cause)
        report = error.to_report()
print(report)

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
