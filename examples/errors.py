"""What an error of bitnet carries: a sentence, facts, causes, and a report for an issue.

python examples/errors.py
"""

import numpy as np

import bitnet

try:
    bitnet.QuantizationConfig(bit_width=2)
except bitnet.ConfigurationError as error:
    print(error)

x = np.ones((2, 64), np.float32)
x[1, 7] = np.nan
try:
    try:
        bitnet.quantize_activations(x)
    except bitnet.QuantizationError as cause:
        context = bitnet.ErrorContext.here("quantise a batch", "the second layer's input", layer=1)
        raise bitnet.InferenceError("the batch cannot be run", context=context) from cause
except bitnet.BitNetError as error:
    print([str(one) for one in error.chain()])
    print(error.to_report())
