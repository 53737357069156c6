"""Augment stories for `bitnet train`: the same stories, told of others.

python examples/swap_names.py                                            # shows what it does
python examples/swap_names.py stories.txt swapped.txt --copies 2 --seed 1

A small model that reads "Lily" in every sixth story learns to write "Lily", whoever the prompt was about. In the copies
that this writes, each name becomes another one, the same throughout the story, and so do kinds of animals that can
stand in for each other and, where asked for, the one girl or boy of a story; or its hero loses the name. What a model
can still learn is to go on with whom it was given. A story stays as it is where a swap could make it untrue: two names
of which one may be short for the other, an animal that barks or flies. Stories in which nothing was swapped are left
out. Train on the copies together with the originals.
"""

import argparse
import random
import re

END_OF_TEXT = "<|endoftext|>"

STORY = "Lily saw an otter. The otter was sad. \"Do not be sad,\" said Lily. Lily's friend Tom was there, too."

# Names by the pronoun that goes with them: those of TinyStories, the frequent ones first, and then others.
NAMES = {
    "she": """Lily Sue Mia Lucy Amy Anna Sally Jane Sarah Sara Daisy Lila Molly Emma Jill Mary Bella Mimi Luna Ann Lisa
        Jenny Emily Ella Lola Polly Tina Alice Susie Betty Ellie Kim Kate Annie Maria Sophie Julie Clara Sandy Mandy
        Zara Tilly Milly Abigail Rosie Cindy Millie Claire Linda Lizzie Ruby Carla Rachel Abby Suzie Ruth Zoe Jenna
        Beth Susan Hannah Gigi Mina Maggie Tara Suzy Amanda Maisy Maya Gina Mabel Liz Mona Lena Kiki Betsy Mila Julia
        Kayla Olivia Sophia Jessica Elsie Susy Eva Bonnie Jennie Maddy Samantha Michelle Louise Monica Holly Abi Emmy
        Allie Jilly Trixie Pam Marie Jessie Mira Nia Katie Greta Ida Nora Vera Frida Hilda Edith Ines Leila Aisha Noor
        Yuki Hana Priya Asha Amara Imani Rosa Carmen Elena Sofia Ingrid Astrid Fern Hazel Ivy Willa Dora Tess Nell Wren
        Pia Romy Juno Thea Marta Agnes Nina Selma Tilda Ada Cleo Bea Minnie""",
    "he": """Tim Tom Max Ben Timmy Bob Jack John Tommy Billy Joe Benny Leo Jerry Jimmy Jim Fred Bobby Jake Andy Sammy
        Peter Ollie Pete Johnny Charlie Dave Danny George Henry Freddy Dan Carl Ted Joey Toby Mike Tony Finn Paul
        David Oliver Harry James Frank Rob Robby Martin Jason Jacob Ricky Robbie Gary Larry Wally Burt Barry Ernie Todd
        Adam Mikey Louis Chris Rudy Lenny Gerry Daniel Nick Thomas Simon Michael Steve Brad Otto Pip Hugo Felix Oscar
        Ivan Igor Emil Anton Bruno Karl Lars Sven Olaf Omar Ali Hassan Raj Ravi Arjun Kofi Kwame Jamal Diego Pablo Luis
        Mateo Marco Luca Enzo Nico Theo Arlo Milo Ned Gus Abe Ike Zeke Jonas Noah Ethan Liam Owen Ezra Silas Rufus
        Barnaby Edgar Albert Walter Homer Kai Koji Taro Hiro Wei Jun Anders Gabe Seth Caleb Quinn""",
    "any": "Sam Alex Robin Kit Sasha Remy Sky Jules Nikki Ari Noa Ash Toni Max Charlie Pip Sid Lou Bo Rory",
    "pet": """Spot Buddy Bobo Rex Momo Fin Rover Barky Rocko Sparky Bongo Ziggy Nemo Dodo Chirpy Fido Patch Biscuit
        Waffles Pogo Yoyo Zuzu Tiko Bimbo Rufus Bandit Scout Pickle Pebble Noodle Coco Toto Gogo Mochi Tango Dash
        Cosmo Figaro Hobbit Zorro Koko Kiwi Taffy""",
}  # fmt: skip
# Names that are words, too: they stay.
TAKEN = {
    "May", "Will", "Mark", "Rose", "Joy", "Grace", "Hope", "Bill", "Pat", "Penny", "Poppy", "Olive", "Blue", "Sunny",
    "Lucky", "Ray", "Dot", "Fluffy",
}  # fmt: skip

# Animals that may stand for each other, with their plurals, unless the story says what only one of them does.
ANIMALS = {
    "fox": "foxes", "bear": "bears", "rabbit": "rabbits", "squirrel": "squirrels", "mouse": "mice",
    "hedgehog": "hedgehogs", "turtle": "turtles", "frog": "frogs", "pig": "pigs", "goat": "goats", "lion": "lions",
    "tiger": "tigers", "wolf": "wolves", "monkey": "monkeys", "elephant": "elephants", "badger": "badgers",
    "otter": "otters", "raccoon": "raccoons", "beaver": "beavers", "donkey": "donkeys", "zebra": "zebras",
    "lizard": "lizards", "hamster": "hamsters", "mole": "moles",
}  # fmt: skip
TELLTALE = re.compile(
    r"\b(teddy|zoo|farm|toy|costume|mouses|cheese|shell|trunk|nest|wing|fly|flew|roar|oink|ribbit|croak|hop|hopped|hopping"
    r"|carrot|nut|acorn|banana|honey|mane|stripe|spike|tusk|horn|quack|moo|meow|bark|squeak|squeal|howl|cub|bunny"
    r"|piglet|tadpole|lily pad|swing|swung|mud|hare|kitten|puppy|lamb|fur|tail|ears|den|hole|web)s?\b", re.IGNORECASE
)  # fmt: skip

INVENTED = ("b", "br", "d", "dr", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "tr", "v", "w", "z")


def invented_name(rng):
    """Make a name that nobody has: two syllables, ``Zolu``."""
    letters = [rng.choice(INVENTED), rng.choice("aeiou"), rng.choice("bdfklmnprstvz"), rng.choice("aeiou")]
    return "".join([*letters, rng.choice(("", "", "n", "x", "m"))]).capitalize()

# Others who may have what a girl or a boy of a story has: they go on as "she" or "he".
HEROES = [
    "robot", "baker", "farmer", "painter", "sailor", "knight", "fairy", "elf", "gnome", "witch", "wizard", "clown",
    "dancer", "pirate", "giant", "puppet", "doll", "ghost", "dragon", "monster", "dwarf", "troll", "singer",
    "gardener", "shepherd", "teacher", "doctor", "hunter", "cook", "king", "queen", "prince", "princess", "captain",
    "mermaid", "builder", "fisher", "genie", "goblin", "astronaut", "snowman", "inventor", "traveler",
]  # fmt: skip

# How a hero is brought in by a name, and how it goes on after what somebody says.
HERO = re.compile(r"\b([Aa]n?) ((?:[a-z]+ ){0,3}?)(girl|boy|dog|cat|rabbit|bunny|" + "|".join(ANIMALS)
                  + r") (?:named|called) ([A-Z][a-z]+)\b(?! [A-Z])")  # fmt: skip
SAYS = re.compile(r"(?: and [a-z ]+)? (?:said|asked|replied|answered|called|shouted|cried|yelled|whispered)\b")
GREETED = re.compile(r"(?:^|,|\b[Hh]i|[Hh]ello|[Hh]ey|[Yy]ou)$")

ONSETS = (*INVENTED, "bl", "ch", "cl", "cr", "fl", "fr", "gl", "gr", "j", "kl", "ph", "pl", "qu", "sh", "sl", "sn",
          "st", "th", "tw", "v", "y", "", "", "")  # fmt: skip
VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "ai", "ee", "ie", "ia", "oo", "ou", "au", "y")
CODAS = ("", "", "", "n", "l", "r", "s", "m", "ck", "ll", "nd", "rt", "x", "th", "ng", "rn", "tt", "ff", "mb", "ld",
         "sk")  # fmt: skip


def coined_name(rng):
    """Make a name that nobody has, of one to three syllables of any kind: ``Flonder``, ``Ieth``."""
    while True:
        syllables = rng.choice((1, 2, 2, 3))
        name = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(syllables))
        if 3 <= len(name) <= 10:
            return name.capitalize()


def named(story):
    """Find the names in a story, with the group of each."""
    words = set(re.findall(r"[A-Z][a-z]+", story))
    found = {}
    for group, names in NAMES.items():
        for name in names.split():
            if name in words:
                found.setdefault(name, group)
    return found


def swap_names(story, rng, invented=0.1, coined=0.0, never=()):
    """Give each name of a story to somebody else.

    Parameters
    ----------
    story : str
    rng : random.Random
    invented : float
        The share of names that are made up, of two simple syllables.
    coined : float
        The share of names that are made up of more kinds of syllables, so that a tokenizer cuts them in more ways.
    never : collection of str
        Names that are not given: those that a test of unseen names will use.

    Returns
    -------
    str
        The story itself where a swap could confuse who is meant.
    """
    words = set(re.findall(r"[A-Z][a-z]+", story))
    found = named(story)
    short = {name.lower() for name in words & TAKEN} | {name.lower() for name in found}
    if not found or any(a != b and a[:3] == b[:3] for a in short for b in short):  # Tim and Timmy are one boy
        return story
    free = {group: [name for name in names.split() if name not in words] for group, names in NAMES.items()}
    given = {}
    for name, group in sorted(found.items()):
        while True:
            if coined and rng.random() < coined:
                new = coined_name(rng)
            else:
                new = invented_name(rng) if rng.random() < invented else rng.choice(free[group])
            if new not in words and new not in never and not any(new[:2] == other[:2] for other in given.values()):
                break
        given[name] = new
    return re.sub(r"\b(" + "|".join(given) + r")\b", lambda match: given[match[1]], story)


def swap_animals(story, rng):
    """Make other animals of those in a story.

    Parameters
    ----------
    story : str
    rng : random.Random

    Returns
    -------
    str
        The story itself where one of them does what the others cannot, or none is there.
    """
    singular = {plural: one for one, plural in ANIMALS.items()} | {one: one for one in ANIMALS}
    words = set(re.findall(r"[a-z]+", story.lower()))
    found = sorted({singular[word] for word in words & singular.keys()})
    if not found or TELLTALE.search(story):
        return story
    given = dict(zip(found, rng.sample([one for one in ANIMALS if one not in found], len(found)), strict=True))

    def replace(match):
        article, space, word = match[1] or "", match[2] or "", match[3]
        one = singular[word.lower()]
        new = given[one] if word.lower() == one else ANIMALS[given[one]]
        if article:
            article = article[0] + ("n" if new[0] in "aeiou" else "")
        return article + space + (new.capitalize() if word[0].isupper() else new)

    return re.sub(r"\b(?:(an?)(\s+))?(" + "|".join(singular) + r")\b", replace, story, flags=re.IGNORECASE)


def swap_hero(story, rng):
    """Make somebody else of the one girl, or the one boy, whom a story is about.

    Parameters
    ----------
    story : str
    rng : random.Random

    Returns
    -------
    str
        The story itself where it is about no such child, or about several.
    """
    found = re.findall(r"\b(girls?|boys?)\b", story, re.IGNORECASE)
    if len({one.lower() for one in found}) != 1 or found[0].lower().endswith("s"):
        return story
    hero = rng.choice([one for one in HEROES if one not in story.lower()])
    story = re.sub(rf"\b([Aa])n? {found[0]}\b", rf"\1{'n' * (hero[0] in 'aeiou')} {hero}", story)
    return re.sub(rf"\b{found[0]}\b", hero, re.sub(rf"\b{found[0].capitalize()}\b", hero.capitalize(), story))


def drop_name(story, rng):
    """Take the name from the hero whom a story brings in by it: "a girl named Lily" goes on as "the girl".

    Three children of four become somebody else, too, an animal or one of `HEROES`, with the pronouns that they had.

    Parameters
    ----------
    story : str
    rng : random.Random

    Returns
    -------
    str
        The story itself where nobody is brought in so, or another of the same kind is there, or the name is spoken of.
    """
    found = HERO.search(story)
    if found is None:
        return story
    article, adjectives, kind, name = found.groups()
    if (
        len(re.findall(rf"\b(?:[Aa]n?|(?:an)?other) (?:[a-z]+ ){{0,3}}{kind}\b", story)) > 1
        or re.search(rf"\b(?:{kind}s|name (?:is|was)|(?:[Ll]ittle|[Pp]oor|[Dd]ear|I am|I'm) {name})\b", story)
        or any(word != name and word[:3] == name[:3] for word in re.findall(r"[A-Z][a-z]+", story))
    ):
        return story
    others = [one for one in (*HEROES, *ANIMALS) if not re.search(rf"\b{one}", story, re.IGNORECASE)]
    hero = rng.choice(others) if kind in ("girl", "boy") and rng.random() < 0.75 else kind
    article = article[0] + "n" * ((adjectives or hero)[0] in "aeiou")
    story = f"{story[: found.start()]}{article} {adjectives}{hero}{story[found.end() :]}"
    story = re.sub(rf"\b{kind}\b", hero, story)
    adjective = adjectives if adjectives.count(" ") == 1 else ""
    parts = story.split('"')
    for i, part in enumerate(parts):

        def replace(match, i=i, part=part):
            before, after = part[: match.start()].rstrip(" "), part[match.end() :]
            called = i % 2 and re.match("[,.!?]|$", after) and GREETED.search(before)
            one = ("" if called else "the ") + (adjective if called or rng.random() < 0.3 else "") + hero
            if before:
                begins = before[-1] in ".!?\n"
            else:  # after a quotation: who says it, or a new sentence
                begins = i % 2 or i == 0 or (parts[i - 1][-1:] in (".", "!", "?") and not SAYS.match(after))
            return one[0].upper() + one[1:] if begins else one

        parts[i] = re.sub(rf"\b{name}\b", replace, part)
    return '"'.join(parts)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stories", nargs="?", help=f"a text file, its stories separated by lines {END_OF_TEXT}")
    parser.add_argument("output", nargs="?", help="where the copies go")
    parser.add_argument("--copies", type=int, default=1, help="how many of each story (default: 1)")
    parser.add_argument("--seed", type=int, default=1, help="another one gives other names (default: 1)")
    parser.add_argument("--coined", type=float, default=0.0, metavar="SHARE",
                        help="this share of the names is made up, of many kinds of syllables (default: 0)")  # fmt: skip
    parser.add_argument("--heroes", type=float, default=0.0, metavar="SHARE",
                        help="in this share of the stories about a girl or boy it is a robot, ...")  # fmt: skip
    parser.add_argument("--nameless", type=float, default=0.0, metavar="SHARE",
                        help="in this share of the stories the hero loses the name: the girl, the fox ...")  # fmt: skip
    parser.add_argument("--several", action="store_true", help="only stories in which two or more have a name")
    parser.add_argument("--never", nargs="+", default=(), metavar="NAME", help="names that are given to nobody")
    chosen = parser.parse_args(arguments)
    if chosen.stories is None:
        print(STORY)
        for seed in range(chosen.seed, chosen.seed + 3):
            rng = random.Random(seed)
            print(swap_animals(swap_names(STORY, rng), rng))
        return
    if chosen.output is None:
        parser.error("where do the copies go?")
    with open(chosen.stories, encoding="utf-8") as file:
        stories = [one.strip() for one in re.split(rf"^{re.escape(END_OF_TEXT)}$", file.read(), flags=re.MULTILINE)]
    stories = [one for one in stories if one]
    rng, written = random.Random(chosen.seed), 0
    with open(chosen.output, "w", encoding="utf-8") as file:
        for _ in range(chosen.copies):
            for story in stories:
                if chosen.several and len(named(story)) < 2:
                    continue
                swapped = swap_animals(swap_names(story, rng, coined=chosen.coined, never=chosen.never), rng)
                if chosen.nameless and rng.random() < chosen.nameless:
                    swapped = drop_name(swapped, rng)
                if chosen.heroes and rng.random() < chosen.heroes:
                    swapped = swap_hero(swapped, rng)
                if swapped != story:
                    file.write(f"{swapped}\n{END_OF_TEXT}\n")
                    written += 1
    print(f"{written} stories written, of {len(stories)} x {chosen.copies}")


if __name__ == "__main__":
    main()
