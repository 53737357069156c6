"""Measure the bundled model for its model card: losses, samples of held prompts, whom they are about, what they copy.

python bench/model_card.py TRAIN_TEXT VALIDATION_TEXT TEST_TEXT [CHECKPOINT] > facts.md

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
HELD_TOKENS = 20  # of the first ten stories of the validation text, which are told on, too
SAMPLED = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 160}

# A name in the midst of a sentence, and what looks like one.
NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+\b")
NO_NAMES = {"Mom", "Mommy", "Mum", "Mummy", "Mama", "Dad", "Daddy", "Papa", "Grandma", "Grandpa", "Mr", "Mrs", "Miss"}
# How somebody comes in: "named Tom", "a friend, Tom", "his sister Sue", "I am Tom".
INTRODUCTION = r"\b(named|called|name was|name is|am|I'm|friends?,?|brother,?|sister,?|cousin,?) "
# Who says what.
SAYS = r"(?:said|asked|replied|answered|called|shouted)"
SPEECH = re.compile(rf'"(?P<one>[^"]*)" {SAYS} (?P<after>[A-Z][a-z]+)'
                    rf'|(?P<before>[A-Z][a-z]+) {SAYS},? "(?P<other>[^"]*)"')  # fmt: skip
NAME_OR_TWO = r"\bnamed\b|\bcalled\b|[a-z,;] [A-Z]|\btwo\b|\bfriends\b"
ANIMAL = (r"\b(cat|dog|bird|fox|bear|rabbit|bunny|squirrel|mouse|turtle|frog|pig|goat|lion|tiger|wolf|monkey|elephant"
          r"|duck|fish|horse|cow|sheep|bee|butterfly|ant|owl|snake|beaver|hedgehog|raccoon)\b")  # fmt: skip
NEW_NAMES = {
    "she": ("Nadia", "Yvonne", "Beatrix", "Tamsin", "Orla"),
    "he": ("Rolf", "Gustav", "Duncan", "Kelvin", "Tobin"),
    "": ("Perrin", "Loxy", "Drumble", "Fennick", "Wizzle"),
}


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


def openings_with_names(stories, source):
    """The openings of stories that name somebody, with a name instead that the training text does not have.

    Returns
    -------
    list of (str, str, str)
        The opening, the name, and the pronoun that is certain, or "".
    """
    assert not any(f" {name} " in source for names in NEW_NAMES.values() for name in names)
    found = []
    for story in stories:
        opening = re.match(r"(?:[^.!?\"]*[.!?] )?[^.!?\"]*\bnamed ([A-Z][a-z]+)\b[^.!?\"]*\.", story)
        if opening is None or NAME.sub("", opening[0]) != opening[0].replace(opening[1], ""):
            continue  # somebody else is there, too
        who = re.search(r"\b(girl|boy|woman|man|princess|king)\b", opening[0])
        pronoun = {"girl": "she", "woman": "she", "princess": "she", None: ""}.get(who and who[1], "he")
        name = NEW_NAMES[pronoun][len(found) % 5]
        found.append((opening[0].replace(opening[1], name), name, pronoun))
    return found


def openings_with_animals(stories):
    """The first sentences of stories about one animal without a name, each with some other animals instead, and which.

    Returns
    -------
    list of (str, str)
    """
    first = (re.match(r"[^.!?\"]*\.", story) for story in stories)
    return [
        (re.sub(ANIMAL, kind, one[0]), kind)
        for one in first if one and len(re.findall(ANIMAL, one[0])) == 1 and not re.search(NAME_OR_TWO, one[0])
        for kind in ("fox", "turtle", "beaver", "hedgehog", "frog", "raccoon")
    ]  # fmt: skip


def characters(model, stories, source, options):
    """Of texts that begin with a character: how many keep to it.

    Returns
    -------
    dict of str to float
        Shares by what they are of.
    """
    named, pronouns = openings_with_names(stories, source), 0
    again = first = right = strangers = said = selves = 0
    for seed, (opening, name, pronoun) in enumerate(named):
        text = model.generate(opening, **({"seed": seed} | options | {"max_new_tokens": 120})).text
        names = [one for one in NAME.findall(text) if one not in NO_NAMES]
        names = re.findall(rf"\b({'|'.join({name, *names})})\b", text)  # where they begin a sentence, too
        again += name in names
        first += bool(names) and names[0] == name
        strangers += any(not re.search(INTRODUCTION + other, text) for other in {*names} - {name})
        if pronoun:
            pronouns += 1
            found = re.search(r"\b(he|she)\b", text, re.IGNORECASE)
            right += found is not None and found[1].lower() == pronoun
        for speech in SPEECH.finditer(text):
            speaker, words = speech["after"] or speech["before"], speech["one"] or speech["other"]
            said += 1
            selves += bool(re.search(rf"(, |^){speaker}[.,!?]|^(Hi|Hello|Hey|Thank you),? {speaker}\b", words))
    animals, same = openings_with_animals(stories), 0
    for seed, (opening, kind) in enumerate(animals):
        text = model.generate(opening, **({"seed": seed} | options | {"max_new_tokens": 60})).text
        found = re.search(ANIMAL, text)
        same += found is not None and found[0] == kind
    return {
        f"the next name is that one (of {len(named)} texts)": first / len(named),
        "the name comes again within 120 tokens": again / len(named),
        "somebody else comes in by a name and was not introduced": strangers / len(named),
        f"the next pronoun is right (of {pronouns} about girls and boys)": right / pronouns,
        "who speaks calls themself by name, as if to another (of all that is said by somebody with a name)":
            selves / max(said, 1),
        f"the next animal is the one of the opening (of {len(animals)} texts about an animal without a name)":
            same / len(animals),
    }  # fmt: skip


def main(train, validation, test, checkpoint=None):
    source = " " + re.sub(r"\s+", " ", open(train, encoding="utf-8").read()) + " "  # noqa: SIM115
    with bitnet.load(checkpoint) as model:
        print("| text | nats a token | bits a character |\n|---|---|---|")
        for name, texts in (("validation", documents(validation)), ("test", documents(test)),
                            ("training, 300 documents of it", documents(train)[:: len(documents(train)) // 300])):
            print("| {} | {:.4f} | {:.4f} |".format(name, *losses(model, texts)))
        print()
        ways = {"sampled": SAMPLED, "greedy": {"max_new_tokens": SAMPLED["max_new_tokens"]}}
        found = [characters(model, documents(validation) + documents(test), source, one) for one in ways.values()]
        print(f"| somebody whose name is not in the training text | {' | '.join(ways)} |\n|---|{'---|' * len(ways)}")
        for what in found[0]:
            print(f"| {what} | {' | '.join(f'{one[what]:.2f}' for one in found)} |")
        held = [model.model.tokenizer.decode(model.model.encode(text)[:HELD_TOKENS])
                for text in documents(validation)[:10]]  # fmt: skip
        for how, options, prompts in (
            *((how, options, PROMPTS) for how, options in ways.items()), ("held-out stories", ways["greedy"], held),
        ):  # fmt: skip
            print(f"\n{how.capitalize()}:")
            copies = []
            for seed, prompt in enumerate(prompts):
                assert f" {prompt} " not in source
                text = model.generate(prompt, **({"seed": seed} | options)).text
                print(f"\n> **{prompt}**" + re.sub(r"\s*\n\s*", "\n> ", text))
                copies.append(longest_copy(f"{prompt} {text}", source))
            copies.sort(key=len)
            print(f"\n{how}: longest overlap with the training text {len(copies[-1])} words (median {len(copies[5])}): "
                  f"\"{' '.join(copies[-1])}\"")


if __name__ == "__main__":
    main(*sys.argv[1:])
