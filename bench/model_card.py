"""Measure the bundled model for its model card: losses, samples of held prompts, and what they copy.

python bench/model_card.py TRAIN_TEXT VALIDATION_TEXT TEST_TEXT > facts.md

The texts are the ones it was trained and measured on; they are not part of this repository (the card names them).
"""

import math
import re
import sys

import numpy as np

import bitnet

# No story of the texts begins so.
PROMPTS = (
    "Once upon a time, in a quiet village, there lived a baker named Otto.",
    "Mia and her grandmother found an old key under the bridge.",
    "The little robot wanted to learn how to sing.",
    "It was raining, and Sam could not find his yellow boots.",
    "A brave mouse named Pip wanted to see the moon.",
    "Ben did not want to share his new drum with Anna.",
    "One morning, the fox woke up and all the snow was gone.",
    "\"Can you help me?\" asked the old turtle.",
    "Lucy planted a tiny seed behind the school.",
    "The captain of the paper boat was a green frog.",
)
SAMPLED = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 160}


def documents(path):
    with open(path, encoding="utf-8") as file:
        return [one.strip() for one in file.read().split("<|endoftext|>\n") if one.strip()]


def losses(model, texts, context=512):
    """Nats a token and bits a character, the end of each text included."""
    total = count = 0
    for text in texts:
        ids = [*map(int, model.model.encode(text)), 0]
        for start in range(0, len(ids) - 1, context):
            part = ids[start : start + context + 1]
            logits = model.infer(part[:-1]).astype(np.float64)
            logits -= logits.max(-1, keepdims=True)
            total += (np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(part) - 1), part[1:]]).sum()
            count += len(part) - 1
    return total / count, total / math.log(2) / sum(map(len, texts))


def longest_copy(text, source):
    """The longest row of words that the source has too."""
    words, best = text.split(), []
    for start in range(len(words)):
        while start + len(best) < len(words) and f" {' '.join(words[start : start + len(best) + 1])} " in source:
            best = words[start : start + len(best) + 1]
    return best


def main(train, validation, test):
    source = " " + re.sub(r"\s+", " ", open(train, encoding="utf-8").read()) + " "  # noqa: SIM115
    with bitnet.load() as model:
        print("| text | nats a token | bits a character |\n|---|---|---|")
        for name, texts in (("validation", documents(validation)), ("test", documents(test)),
                            ("training, 300 documents of it", documents(train)[:: len(documents(train)) // 300])):
            print("| {} | {:.4f} | {:.4f} |".format(name, *losses(model, texts)))
        copies = {"greedy": [], "sampled": []}
        for seed, prompt in enumerate(PROMPTS):
            assert f" {prompt} " not in source
            texts = {"greedy": model.generate(prompt, max_new_tokens=160, do_sample=False).text,
                     "sampled": model.generate(prompt, seed=seed, **SAMPLED).text}  # fmt: skip
            print(f"\n> **{prompt}**" + re.sub(r"\s*\n\s*", "\n> ", texts["sampled"]))
            for how, text in texts.items():
                copies[how].append(longest_copy(f"{prompt} {text}", source))
        for how, found in copies.items():
            lengths = sorted(map(len, found))
            longest = max(found, key=len)
            print(f"\n{how}: longest overlap with the training text {lengths[-1]} words (median {lengths[5]}): "
                  f"\"{' '.join(longest)}\"")
        print("\nGreedy:")
        for prompt in PROMPTS:
            text = model.generate(prompt, max_new_tokens=110, do_sample=False).text
            print(f"\n> **{prompt}**" + re.sub(r"\s*\n\s*", "\n> ", text))


if __name__ == "__main__":
    main(*sys.argv[1:])
