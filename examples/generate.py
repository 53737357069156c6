"""Tell a story with the model that comes with the package, and look at what it thought of.

python examples/generate.py
"""

import numpy as np

import bitnet

with bitnet.load() as model:
    print(model)
    print("Once upon a time" + model.generate("Once upon a time", max_new_tokens=60).text)

    for piece in model.stream("The little fox", max_new_tokens=40, do_sample=True, temperature=0.7, seed=3):
        print(piece.text, end="", flush=True)
    print()

    logits = model.infer("The cat sat on the", last_only=True)
    likely = np.argsort(logits)[::-1][:5]
    print([model.model.tokenizer.decode([token]) for token in likely])
