"""What the engine does with conversations: the template's text, and its answer."""

import json

import pytest
from cli_checkpoints import TEMPLATE, with_tokenizer

import bitnet
from bitnet import FormatError, GenerationConfig, InferenceError, ModelLoadError

TALK = [{"role": "user", "content": "w9 w10"}]
FIVE = GenerationConfig(max_new_tokens=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = with_tokenizer(tmp_path_factory.mktemp("texts") / "model")
    with bitnet.load(folder, num_threads=1) as loaded:
        yield loaded


def test_chat_answers_the_text_of_the_template(model):
    done = model.engine.chat(model.model, TALK, FIVE)
    assert done.tokens == model.generate("user: w9 w10 ", FIVE).tokens
    assert len(done.tokens) == 5
    assert model.chat(TALK, max_new_tokens=5).tokens == done.tokens


def test_a_chat_may_be_a_stream(model):
    stream = model.chat(TALK, FIVE, stream=True)
    pieces = list(stream)
    assert [piece.token for piece in pieces if piece.token is not None] == model.chat(TALK, FIVE).tokens
    assert "".join(piece.text for piece in pieces) == stream.completion.text


def test_a_chat_takes_what_a_stream_takes():
    seen = []
    with bitnet.load(num_threads=1) as bundled:
        done = bundled.chat(TALK, FIVE, template="plain", grammar=bitnet.Grammar.regex("cat"), on_piece=seen.append,
                            timeout=60.0)  # fmt: skip
    assert done.text == "cat"
    assert "".join(piece.text for piece in seen) == "cat"


def test_tools_and_variables_reach_the_template(model):
    template = "{{ tools[0].name }} {{ depth }} {{ messages[0].content }}"
    prompt = {"tools": [{"name": "w5"}], "template": template, "template_variables": {"depth": "w6"}}
    assert model.chat(TALK, FIVE, **prompt).tokens == model.generate("w5 w6 w9 w10", FIVE).tokens


def test_the_plain_template_is_what_was_said(model):
    talk = [{"role": "system", "content": " w3 "}, *TALK]
    assert model.chat(talk, FIVE, template="plain").tokens == model.generate("w3 w9 w10", FIVE).tokens


def test_the_beginning_of_the_answer_may_be_left_out(model):
    assert model.model.chat_prompt(TALK, template="{{ add_generation_prompt }}") == "True"
    assert model.model.chat_prompt(TALK, template="{{ add_generation_prompt }}", add_generation_prompt=False) == "False"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"bos_token": "<s>", "eos_token": {"content": "</s>"}}, "<s>|</s>"),
        ({"bos_token": None, "eos_token": "</s>"}, "|</s>"),
    ],
)
def test_templates_find_the_marks_of_the_checkpoint(tmp_path, settings, text):
    folder = with_tokenizer(tmp_path / "model", template=None)
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    with bitnet.load(folder) as loaded:
        assert loaded.model.chat_prompt([], template="{{ bos_token }}|{{ eos_token }}") == text


def test_the_bundled_model_goes_on_from_what_was_said():
    with bitnet.load(num_threads=1) as loaded:
        with pytest.raises(ModelLoadError, match=r"has no chat template.*'plain'"):
            loaded.chat(TALK)
        said = [{"role": "user", "content": "Once upon a time"}]
        assert loaded.chat(said, max_new_tokens=8, template="plain").text.startswith(", there was a")
        assert loaded.model.chat_prompt([], template="{{ bos_token }}|{{ eos_token }}") == "<|endoftext|>|<|endoftext|>"


def test_what_a_template_or_a_conversation_may_not_be(model):
    with pytest.raises(FormatError, match="ZeroDivisionError"):
        model.chat(TALK, template="{{ 1 / 0 }}")
    with pytest.raises(InferenceError, match="beyond the 128 tokens"):
        model.chat([{"role": "user", "content": "w9 " * 200}])
    with pytest.raises(bitnet.ConfigurationError, match=r"ChatTemplate.template is \{\}; it must be a string"):
        model.chat(TALK, template={})
    assert "role" in TEMPLATE
