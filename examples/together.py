"""Many answers at once: a list, streams beside each other, tasks of asyncio; and an answer that is JSON.

python examples/together.py
"""

import asyncio

import bitnet

SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}}, "required": ["name"],
          "additionalProperties": False}  # fmt: skip

with bitnet.load() as model:
    for answer in model.generate(["Once upon a time", "The little fox", "One day"], max_new_tokens=20):
        print(answer.text.strip(), f"({answer.finish_reason})")

    streams = [model.stream(prompt, max_new_tokens=10) for prompt in ("The cat", "The dog")]
    for cat, dog in zip(*streams, strict=False):
        print(cat.text, dog.text, sep=" | ")

    async def length(prompt):
        return sum([1 async for _ in model.stream(prompt, max_new_tokens=15)])

    async def both():
        return await asyncio.gather(length("A bird"), length("A fish"))

    print(asyncio.run(both()), "tokens")

    try:
        grammar = bitnet.Grammar.json_schema(SCHEMA)
        print(model.generate("The hero of this story: ", grammar=grammar, max_new_tokens=60).text)
    except bitnet.DeviceError as error:  # the library for grammars is an extra
        print(error)
