"""Answers of a grammar: JSON of a schema, regular expressions, grammars; alone, in a batch, as they come."""

import json
import re
import subprocess
import sys

import pytest
from checkpoints import DATA

import bitnet
from bitnet import GenerationConfig, Grammar

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object", "required": ["name", "age", "tags"], "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 2},
    },
}  # fmt: skip
SUM = 'start: term ("+" term)~1..3\nterm: /[0-9]{1,3}/ | "(" start ")"'
LONG = GenerationConfig(max_new_tokens=120, repetition_penalty=1.0)
DRAWN = GenerationConfig(max_new_tokens=120, do_sample=True, temperature=1.5, seed=7)
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def loaded():
    with bitnet.load(num_threads=1) as one:
        yield one


def of_schema(text):
    found = json.loads(text)
    return set(found) == {"name", "age", "tags"} and 0 <= found["age"] <= 150 and set(found["tags"]) <= {"red", "blue"}


def is_a_sum(text):
    while (shorter := re.sub(r"\(\d+(\+\d+){1,3}\)", "1", text)) != text:
        text = shorter
    return re.fullmatch(r"\d+(\+\d+){1,3}", text)


CASES = [
    (Grammar.json_schema(SCHEMA), of_schema),
    (Grammar.json_schema('{"enum": [1, null, "a b", [2]]}'), lambda text: json.loads(text) in (1, None, "a b", [2])),
    (Grammar.regex("[a-f]{3,5}-[0-9]{4}"), lambda text: re.fullmatch("[a-f]{3,5}-[0-9]{4}", text)),
    (Grammar.regex("(ja|nein|é😀)"), lambda text: text in ("ja", "nein", "é😀")),
    (Grammar.lark(SUM), lambda text: is_a_sum(text)),
]


@pytest.mark.parametrize("config", [LONG, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_an_answer_is_of_its_grammar(loaded, case, config):
    grammar, holds = CASES[case]
    answer = loaded.generate(PROMPT, config, grammar=grammar)
    assert answer.finish_reason in ("stop", "eos")
    assert holds(answer.text), answer.text
    assert loaded.model.eos_token_ids[0] not in answer.tokens


def test_space_is_where_json_dumps_puts_it_or_where_the_model_does(loaded):
    tight = loaded.generate(PROMPT, DRAWN, grammar=CASES[0][0]).text
    assert json.dumps(json.loads(tight), ensure_ascii=False) == tight
    # So hot that no kind of space is much likelier than what ends it.
    hot = DRAWN.replace(max_new_tokens=400, temperature=8.0)
    loose = loaded.generate(PROMPT, hot, grammar=Grammar.json_schema(SCHEMA, whitespace=True)).text
    assert of_schema(loose)
    assert json.dumps(json.loads(loose), ensure_ascii=False) != loose


def test_grammars_beside_each_other_and_beside_none(loaded):
    streams = [loaded.stream(PROMPT, config, grammar=grammar) for grammar, _ in CASES for config in (LONG, DRAWN)]
    streams += [loaded.stream(PROMPT, LONG)]
    open_ones = list(streams)
    while open_ones:
        open_ones = [one for one in open_ones if next(one, None) is not None]
    expected = [loaded.generate(PROMPT, config, grammar=grammar) for grammar, _ in CASES for config in (LONG, DRAWN)]
    expected += [loaded.generate(PROMPT, LONG)]
    assert [one.completion.tokens for one in streams] == [one.tokens for one in expected]
    assert [one.completion.text for one in streams] == [one.text for one in expected]


def test_an_end_of_ones_own_does_not_cut_it_short(loaded):
    answer = loaded.generate(PROMPT, LONG, grammar=Grammar.regex("[a-z]{20}"), eos_token_id=())
    assert re.fullmatch("[a-z]{20}", answer.text)
    short = loaded.generate(PROMPT, LONG.replace(max_new_tokens=3), grammar=Grammar.regex("[a-z]{50}"))
    assert (short.finish_reason, len(short.tokens)) == ("length", 3)


def test_what_is_no_grammar_is_refused():
    for make in (lambda: Grammar.regex("("), lambda: Grammar.lark("start: nothing"), lambda: Grammar.json_schema("{"),
                 lambda: Grammar.json_schema({"type": "nothing"}), lambda: Grammar.json_schema(3),
                 lambda: Grammar.regex(3)):  # fmt: skip
        with pytest.raises(bitnet.ConfigurationError, match=r"^Grammar\.\w+ (cannot be used: |is 3; it must be )"):
            make()


def test_a_model_without_tokenizer_has_no_grammar():
    with (
        bitnet.load(DATA / "bitnet-packed-auto", num_threads=1) as one,
        pytest.raises(bitnet.ModelLoadError, match="no tokenizer"),
    ):
        one.generate([5], grammar=Grammar.regex("a"))


def test_without_the_library_the_extra_is_named():
    code = (
        "import sys; sys.modules['llguidance'] = None\n"
        "import bitnet\n"
        "try: bitnet.Grammar.regex('a')\n"
        "except bitnet.DeviceError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "'llguidance' is not installed; run: pip install 'bitnet-runtime[grammar]'"


def test_an_answer_that_is_taken_back_is_of_its_grammar_still(loaded):
    grammar = Grammar.regex("[a-z]{5} [a-z]{5} [0-9]{8}")
    config = GenerationConfig(max_new_tokens=60, stop_strings=["99"])
    stream = loaded.engine.stream(loaded.model, PROMPT, config, grammar=grammar)
    whole = "".join(piece.text for piece in stream)
    assert re.fullmatch("[a-z]{5} [a-z]{5} [0-9]{8}", whole)
    again = stream.rewind(3)
    rest = "".join(piece.text for piece in again)
    assert whole.endswith(rest)
    assert again.completion.text == whole
    assert again.completion.tokens == stream.completion.tokens
