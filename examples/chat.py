"""A conversation of two turns, with the model that comes with bitnet: it was not trained to chat, it goes on.

python examples/chat.py
"""

import bitnet

with bitnet.load() as model:
    messages = []
    for said in ("Once upon a time, there was a cat named Mia.", "One day, Mia met a dog."):
        messages.append({"role": "user", "content": said})
        print(said, end="")
        # A model with a chat template of its own needs no `template`.
        stream = model.chat(messages, template="plain", stream=True, max_new_tokens=40, do_sample=True, seed=1)
        for piece in stream:
            print(piece.text, end="", flush=True)
        print()
        messages.append({"role": "assistant", "content": stream.completion.text})
