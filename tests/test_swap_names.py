"""The example that augments stories: names and animals change, consistently, and nothing else does."""

import importlib.util
import random
import re
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("swap_names", Path(__file__).parent.parent / "examples" / "swap_names.py")
swapping = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(swapping)

STORY = "Lily had a ball. \"Lily's ball is red,\" said Tom. Tom and Lily played."


@pytest.mark.parametrize("seed", range(20))
def test_a_name_becomes_one_other_name_everywhere(seed):
    swapped = swapping.swap_names(STORY, random.Random(seed), invented=0)
    she, he = re.match(r"(\w+) had .* said (\w+)\.", swapped).groups()
    assert she in swapping.NAMES["she"].split()
    assert he in swapping.NAMES["he"].split()
    assert swapped == STORY.replace("Lily", she).replace("Tom", he)
    assert len({"Lily", "Tom", she, he}) == 4


def test_names_that_change_places_are_not_changed_twice():
    story = "Lily saw Sue. Sue saw Lily."
    for seed in range(200):
        words = re.findall(r"\w+", swapping.swap_names(story, random.Random(seed)))
        assert words[0] == words[5] != words[2] == words[3]


def test_some_names_are_made_up():
    known = {name for names in swapping.NAMES.values() for name in names.split()}
    given = [swapping.swap_names("Lily ran.", random.Random(seed), invented=0.5).split()[0] for seed in range(200)]
    assert 60 < sum(name not in known for name in given) < 140


@pytest.mark.parametrize("story", [
    "Tim was a boy. Timmy ran.", "Mark saw Mary.", "A dog ran to Mom.", "The lily grew.", "",
])  # fmt: skip
def test_who_could_be_confused_stays(story):
    for seed in range(20):
        assert swapping.swap_names(story, random.Random(seed)) == story


@pytest.mark.parametrize("seed", range(20))
def test_an_animal_becomes_one_other_animal_everywhere(seed):
    story = "An otter saw a fox and two foxes. The otter ran. Foxes ran. \"Otter!\" said a big otter."
    swapped = swapping.swap_animals(story, random.Random(seed))
    otter, fox = re.search(r"(\w+) saw an? (\w+)", swapped).groups()
    assert {otter, fox} < swapping.ANIMALS.keys() - {"otter", "fox"}
    foxes = swapping.ANIMALS[fox]
    an = {one: "an" if one[0] in "aeiou" else "a" for one in (otter, fox)}
    assert swapped == (
        f"{an[otter].capitalize()} {otter} saw {an[fox]} {fox} and two {foxes}. The {otter} ran. {foxes.capitalize()} "
        f"ran. \"{otter.capitalize()}!\" said a big {otter}."
    )


@pytest.mark.parametrize("story", ["The fox wagged its tail.", "A monkey ate bananas.", "A cat saw a dog."])
def test_an_animal_that_does_what_others_cannot_stays(story):
    assert swapping.swap_animals(story, random.Random(1)) == story


def test_the_copies_of_a_file(tmp_path, capsys):
    stories, first, second = (tmp_path / name for name in ("stories.txt", "first.txt", "second.txt"))
    stories.write_text(f"{STORY}\n<|endoftext|>\nA cat ran.\n<|endoftext|>\n", encoding="utf-8")
    for path, seed in ((first, "7"), (second, "7")):
        swapping.main([str(stories), str(path), "--copies", "3", "--seed", seed])
    assert "3 stories written, of 2 x 3" in capsys.readouterr().out
    assert first.read_bytes() == second.read_bytes()
    copies = first.read_text(encoding="utf-8").split("\n<|endoftext|>\n")
    assert copies.pop() == ""
    assert len(set(copies)) == 3
    assert STORY not in copies
    swapping.main([str(stories), str(second), "--copies", "3", "--seed", "8"])
    assert first.read_bytes() != second.read_bytes()
    with pytest.raises(SystemExit):
        swapping.main([str(stories)])
    assert "where do the copies go?" in capsys.readouterr().err
