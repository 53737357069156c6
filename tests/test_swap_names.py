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


def test_coined_names_are_of_many_kinds():
    known = {name for names in swapping.NAMES.values() for name in names.split()}
    rngs = map(random.Random, range(400))
    given = [swapping.swap_names("Lily ran.", rng, invented=0, coined=0.5).split()[0] for rng in rngs]
    coined = {name for name in given if name not in known}
    assert 140 < len(coined) < 260
    assert all(re.fullmatch("[A-Z][a-z]{2,9}", name) for name in coined)
    assert len({name[:2] for name in coined}) > 60
    assert len({name[-1] for name in coined}) > 12


def test_names_kept_for_a_test_are_given_to_nobody():
    held = swapping.NAMES["she"].split()[10:]
    rngs = map(random.Random, range(100))
    given = {swapping.swap_names("Lily ran.", rng, invented=0, never=held).split()[0] for rng in rngs}
    assert given == {*swapping.NAMES["she"].split()[1:10]}


@pytest.mark.parametrize("seed", range(20))
def test_a_girl_or_a_boy_becomes_somebody_else_everywhere(seed):
    story = "A girl met a small girl. \"Girl!\" The girl's mom ran."
    swapped = swapping.swap_hero(story, random.Random(seed))
    hero = re.search(r"met a small (\w+)", swapped)[1]
    assert hero in swapping.HEROES
    assert swapped == (
        f"{'An' if hero[0] in 'aeiou' else 'A'} {hero} met a small {hero}. \"{hero.capitalize()}!\" "
        f"The {hero}'s mom ran."
    )


def test_nobody_becomes_who_is_there_already():
    story = f"A boy saw {', '.join('a ' + one for one in swapping.HEROES if one not in ('elf', 'robot'))}."
    assert {swapping.swap_hero(story, random.Random(seed))[:7].split()[1] for seed in range(40)} == {"elf", "robot"}


@pytest.mark.parametrize("story", ["A girl saw a boy.", "Two girls ran.", "The boy saw boys.", "A cat ran.", ""])
def test_a_story_of_several_children_or_of_none_keeps_them(story):
    assert swapping.swap_hero(story, random.Random(1)) == story


@pytest.mark.parametrize("seed", range(40))
def test_a_hero_loses_the_name_and_keeps_the_rest(seed):
    story = (
        "Once there was a little girl named Lily. Lily ran with Tom.\n\"Hi, Lily!\" said Tom. \"Lily, look! Is it "
        "Lily's?\" Lily said, \"No.\" \"Oh!\" Lily fell. \"Tom,\" Lily asked, \"is Lily the nice girl?\" "
        "She and Lily's mom ran."
    )
    story = swapping.drop_name(story, random.Random(seed))
    hero = re.search(r"a little (\w+)\. ", story)[1]
    assert hero in {*swapping.HEROES, *swapping.ANIMALS, "girl"}
    assert re.sub(f"([Tt]he) little {hero}", rf"\1 {hero}", story).replace(hero, "X") == (
        "Once there was a little X. The X ran with Tom.\n\"Hi, little X!\" said Tom. \"Little X, look! Is it "
        "the X's?\" the X said, \"No.\" \"Oh!\" The X fell. \"Tom,\" the X asked, \"is the X the nice X?\" "
        "She and the X's mom ran."
    )


def test_who_a_nameless_hero_becomes():
    stories = [swapping.drop_name("A girl named Lily saw an elf.", random.Random(seed)) for seed in range(400)]
    heroes = [re.fullmatch("(?:A|An) (\\w+) saw an elf\\.", one)[1] for one in stories]
    assert 60 < heroes.count("girl") < 140
    assert len({*heroes}) > 50
    assert "elf" not in heroes
    assert all(one.startswith("An ") == (hero[0] in "aeiou") for one, hero in zip(stories, heroes, strict=True))
    story = "An old dog called Spot saw Sue. \"Spot!\""
    assert swapping.drop_name(story, random.Random(1)) == "An old dog saw Sue. \"Old dog!\""


@pytest.mark.parametrize("story", [
    "Lily ran.", "A girl named Lily saw a small girl.", "A girl named Lily saw girls.", "A boy named Tim saw Timmy.",
    "A girl named Lily ran. \"I am Lily.\"", "A dog named Spot ran. Little Spot barked.", "A boy named Tim Lee ran.",
    "A boy named Tim told his name. \"My name is Tim.\"", "",
])  # fmt: skip
def test_a_hero_who_could_be_confused_keeps_the_name(story):
    assert swapping.drop_name(story, random.Random(1)) == story


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


def test_what_the_options_of_the_program_do(tmp_path):
    stories, copies = tmp_path / "stories.txt", tmp_path / "copies.txt"
    stories.write_text("Lily was a girl.\n<|endoftext|>\nLily saw Tom.\n<|endoftext|>\n", encoding="utf-8")

    def written(*options):
        swapping.main([str(stories), str(copies), "--copies", "50", *options])
        return copies.read_text(encoding="utf-8").split("\n<|endoftext|>\n")[:-1]

    several = written("--several")
    assert len(several) == 50
    assert all(re.fullmatch(r"\w+ saw \w+\.", one) for one in several)
    assert 20 < sum(not one.endswith("was a girl.") for one in written("--heroes", "1") if "was" in one) <= 50
    assert all(one.endswith("was a girl.") for one in written() if "was" in one)
    known = {name for names in swapping.NAMES.values() for name in names.split()}
    assert not known & {one.split()[0] for one in written("--coined", "1")}
    stories.write_text("A dog named Lily ran.\n<|endoftext|>\n", encoding="utf-8")
    assert {*written("--nameless", "1")} == {"A dog ran."}
    assert 10 < written("--nameless", "0.5").count("A dog ran.") < 40
    stories.write_text("Lily ran.\n<|endoftext|>\n", encoding="utf-8")
    assert not {"Sue", "Mia"} & {one.split()[0] for one in written("--never", "Sue", "Mia")}
