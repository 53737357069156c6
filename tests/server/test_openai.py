"""The official client of OpenAI against a running server: what it gets is what the engine alone gives."""

import json
import threading

import numpy as np
import pytest

PROMPT = "Once upon a time"
MESSAGES = [{"role": "user", "content": PROMPT}]


def greedy(alone, model, prompt=PROMPT, most=24, **settings):
    settings = {"max_new_tokens": most, "do_sample": False, **settings}
    return alone.generate(model, prompt, model.generation_config.replace(**settings))


def test_a_chat_is_what_the_engine_alone_answers(client, alone, model):
    found = client.chat.completions.create(model="bitnet-stories", messages=MESSAGES, max_tokens=24, temperature=0)
    expected = greedy(alone, model)
    assert found.object == "chat.completion"
    assert found.choices[0].message.role == "assistant"
    assert found.choices[0].message.content == expected.text
    assert found.choices[0].finish_reason == "length"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (expected.prompt_tokens, 24)
    assert found.usage.total_tokens == expected.prompt_tokens + 24
    again = client.chat.completions.create(model="bitnet-stories", messages=MESSAGES, max_completion_tokens=24)
    assert again.choices[0].message.content == expected.text  # the model's own way is to take the most likely token
    assert again.id != found.id


def test_a_chat_is_streamed(client, alone, model):
    chunks = list(client.chat.completions.create(
        model="bitnet-stories", messages=MESSAGES, max_tokens=24, temperature=0, stream=True,
        stream_options={"include_usage": True},
    ))  # fmt: skip
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    *parts, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in parts) == greedy(alone, model).text
    assert [chunk.choices[0].finish_reason for chunk in parts if chunk.choices[0].finish_reason] == ["length"]
    assert last.choices == []
    assert last.usage.completion_tokens == 24
    without = list(client.chat.completions.create(model="bitnet-stories", messages=MESSAGES, max_tokens=3, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in without)


def test_events_end_as_openai_says(http):
    body = {"messages": MESSAGES, "max_tokens": 2, "stream": True}
    found = http.post("/v1/chat/completions", json=body)
    assert found.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = found.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(one.removeprefix("data: "))["object"] == "chat.completion.chunk" for one in events[:-2])


def test_several_answers_have_seeds_of_their_own(client):
    ask = {"model": "bitnet-stories", "messages": MESSAGES, "max_tokens": 16, "temperature": 1.0, "n": 3, "seed": 7}
    found = [choice.message.content for choice in client.chat.completions.create(**ask).choices]
    assert len(set(found)) == 3
    assert [choice.message.content for choice in client.chat.completions.create(**ask).choices] == found
    second = client.chat.completions.create(**{**ask, "n": 1, "seed": 8}).choices[0].message.content
    assert second == found[1]
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**ask, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == found


def test_an_answer_stops_before_a_text(client, alone, model):
    whole = greedy(alone, model, most=60).text
    stop = whole[30:34]
    found = client.chat.completions.create(model="bitnet-stories", messages=MESSAGES, max_tokens=60, temperature=0,
                                           stop=[stop, "nothing of the kind"])  # fmt: skip
    assert found.choices[0].finish_reason == "stop"
    assert found.choices[0].message.content == whole[: whole.index(stop)]


def test_parts_of_texts_and_a_system_message_are_taken(client, alone, model):
    messages = [{"role": "system", "content": "Once"}, {"role": "user", "content": [{"type": "text", "text": "upon"}]}]
    found = client.chat.completions.create(model="bitnet-stories", messages=messages, max_tokens=8, temperature=0)
    assert found.choices[0].message.content == greedy(alone, model, "Once\nupon", most=8).text


def test_completions_of_texts_and_of_tokens(client, alone, model):
    ids = model.encode(PROMPT).tolist()
    expected = greedy(alone, model, most=8).text
    for prompt in (PROMPT, [PROMPT], ids, [ids]):
        found = client.completions.create(model="bitnet-stories", prompt=prompt, max_tokens=8, temperature=0)
        assert [choice.text for choice in found.choices] == [expected]
    ask = {"model": "bitnet-stories", "max_tokens": 8, "temperature": 0}
    both = client.completions.create(prompt=[PROMPT, "The dog"], n=2, **ask)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in both.choices[::2]] == [expected, greedy(alone, model, "The dog", most=8).text]
    assert both.usage.prompt_tokens == len(ids) + len(model.encode("The dog"))
    streamed = client.completions.create(prompt=PROMPT, stream=True, **ask)
    assert "".join(chunk.choices[0].text for chunk in streamed) == expected
    assert len(client.completions.create(model="bitnet-stories", prompt="a").usage.model_dump()) >= 3


def test_embeddings(client, alone, model):
    texts = ["The dog ran.", "A cat."]
    expected = alone.embed(model, texts)
    for encoding in ("float", "base64"):
        found = client.embeddings.create(model="bitnet-stories", input=texts, encoding_format=encoding)
        assert [one.index for one in found.data] == [0, 1]
        vectors = [one.embedding for one in found.data]
        if encoding == "base64":
            import base64

            vectors = [np.frombuffer(base64.b64decode(one), "<f4") for one in vectors]
        assert (np.array(vectors, np.float32) == expected).all()
    assert found.usage.prompt_tokens == sum(len(model.encode(text)) for text in texts)
    by_default = client.embeddings.create(model="bitnet-stories", input=model.encode(texts[1]).tolist())
    assert (np.array(by_default.data[0].embedding, np.float32) == expected[1]).all()


def test_models(client):
    (only,) = client.models.list().data
    assert only.id == "bitnet-stories"
    assert client.models.retrieve("bitnet-stories") == only


def test_errors_are_those_that_the_client_knows(client):
    import openai

    ask = {"model": "bitnet-stories", "messages": MESSAGES}
    for changes, kind, param, code in (
        ({"model": "gpt"}, openai.NotFoundError, "model", "model_not_found"),
        ({"messages": []}, openai.BadRequestError, "messages", "invalid_value"),
        ({"temperature": 3}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"messages": [{"role": "user", "content": "a " * 600}]}, openai.BadRequestError, None,
         "context_length_exceeded"),
        ({"extra_body": {"unknown": 1}}, openai.BadRequestError, "unknown", "unknown_parameter"),
        ({"n": 33}, openai.BadRequestError, "n", None),
    ):
        for stream in (False, True):
            with pytest.raises(kind) as caught:
                client.chat.completions.create(**{**ask, **changes}, stream=stream)
            assert (caught.value.param, caught.value.code) == (param, code)
            assert caught.value.body["message"]


def test_many_streams_at_once_are_each_as_if_alone(client, alone, model):
    words = ["girl", "boy", "dog", "cat", "bird", "frog", "tree", "king"] * 2
    settings = [{"prompt": f"{PROMPT} there was a {word}", "seed": number} for number, word in enumerate(words)]
    found = [""] * len(settings)

    def read(number):
        for chunk in client.completions.create(model="bitnet-stories", max_tokens=60, temperature=0.9, stream=True,
                                               **settings[number]):  # fmt: skip
            found[number] += chunk.choices[0].text

    threads = [threading.Thread(target=read, args=(number,)) for number in range(len(settings))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, text in zip(settings, found, strict=True):
        drawing = {"do_sample": True, "temperature": 0.9, "top_k": None, "top_p": 1.0, "seed": one["seed"]}
        assert text == greedy(alone, model, one["prompt"], 60, **drawing).text
