"""Which of two texts a model finds likelier, and where it is surprised.

python examples/score.py
"""

import bitnet

with bitnet.load() as model:
    start, ends = "The dog was hungry. Mom gave the dog some", [" food.", " shoes.", " yesterday."]
    for end, score in zip(ends, model.score(ends, [start] * len(ends)), strict=True):
        print(f"{score.total:8.2f} nats{'  (what it would have said itself)' if score.is_greedy else ''}:{end}")
    [story] = model.score(["Once upon a time, there was a little girl who paid her taxes."])
    for token, logprob in zip(story.tokens, story.logprobs, strict=True):
        print(f"{logprob:8.2f}  {model.model.tokenizer.decode([token])!r}")
