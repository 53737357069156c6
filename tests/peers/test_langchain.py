"""LangChain's class for OpenAI as a second client of the server."""

import gc

import pytest
from servers import running

import bitnet

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
langchain_openai = pytest.importorskip("langchain_openai")
pytest.importorskip("starlette")
PROMPT = "Once upon a time"


def test_langchain(monkeypatch):
    monkeypatch.setenv("LANGCHAIN_TRACING_V2", "false")
    model = bitnet.InferenceEngine().load_model()
    with bitnet.InferenceEngine() as alone, running(model) as (address, _):
        settings = {"base_url": f"{address}/v1", "api_key": "none", "model": "bitnet-stories"}
        chat = langchain_openai.ChatOpenAI(**settings, temperature=0, max_tokens=12, max_retries=0)
        expected = alone.generate(model, PROMPT, model.generation_config.replace(max_new_tokens=12)).text
        assert chat.invoke(PROMPT).content == expected
        assert "".join(chunk.content for chunk in chat.stream(PROMPT)) == expected
        assert chat.batch([PROMPT, "The dog"])[0].content == expected
        text = langchain_openai.OpenAI(**settings, temperature=0, max_tokens=12, max_retries=0)
        assert text.invoke(PROMPT) == expected
        schema = {"title": "animal", "type": "object", "properties": {"kind": {"enum": ["dog", "cat"]}},
                  "required": ["kind"], "additionalProperties": False}  # fmt: skip
        found = chat.with_structured_output(schema, method="json_schema").invoke(PROMPT)
        assert found["kind"] in ("dog", "cat")
        vectors = langchain_openai.OpenAIEmbeddings(**settings, check_embedding_ctx_length=False)
        assert vectors.embed_query("a dog") == pytest.approx(alone.embed(model, ["a dog"])[0].tolist())
    del chat, text, vectors
    gc.collect()  # it leaves its connections open, of which no other test is to hear
