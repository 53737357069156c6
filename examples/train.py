"""Train a tiny ternary model on a text of your own, export it, and run it. Needs the extra `train`.

python examples/train.py
"""

import tempfile
from pathlib import Path

import bitnet
from bitnet.train import TrainConfig

with tempfile.TemporaryDirectory() as folder:
    text, run, model = Path(folder, "text.txt"), Path(folder, "run"), Path(folder, "model")
    text.write_text("<|endoftext|>\n".join(["The cat sat on the mat and the dog sat on the log.\n"] * 100))
    config = TrainConfig(
        data=str(text), validation=str(text), output=str(run), steps=40, warmup=4, learning_rate=1e-2, threads=1,
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, context=32,
    )  # fmt: skip
    try:
        from bitnet.train import Trainer, export_checkpoint
    except bitnet.DeviceError as error:  # PyTorch is not installed
        print(error)
    else:
        nats = Trainer(config).train()
        export_checkpoint(str(run), str(model))
        with bitnet.load(model) as loaded:
            print(f"{nats:.3f} nats a token:", "The cat" + loaded.generate("The cat", max_new_tokens=12).text)
