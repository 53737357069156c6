"""What the server refuses, and what it does when a client goes."""

import json
import socket
import threading
import time

import httpx
import pytest
from servers import KEY, SlowEngine, running, until

from bitnet import EngineConfig, InferenceEngine

BODY = {"messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 2}
ENDLESS = {**BODY, "max_tokens": 400, "temperature": 1.0, "seed": 3}
CHAT = "/v1/chat/completions"


def problem(found):
    """What an error says, in OpenAI's shape."""
    error = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return found.status_code, error["param"], error["code"]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (CHAT, {}, (400, "messages", "missing_required_parameter")),
        (CHAT, [], (400, None, "invalid_value")),
        (CHAT, {**BODY, "messages": "a"}, (400, "messages", "invalid_value")),
        (CHAT, {**BODY, "messages": [{"role": "god", "content": "a"}]}, (400, "messages.0.role", "invalid_value")),
        (CHAT, {**BODY, "messages": [{"content": "a"}]}, (400, "messages.0.role", "missing_required_parameter")),
        (CHAT, {**BODY, "messages": [{"role": "user", "content": "a", "x": 1}]},
         (400, "messages.0.x", "unknown_parameter")),
        (CHAT, {**BODY, "max_tokens": 0}, (400, "max_tokens", "invalid_value")),
        (CHAT, {**BODY, "max_tokens": 1.5}, (400, "max_tokens", "invalid_value")),
        (CHAT, {**BODY, "max_tokens": True}, (400, "max_tokens", "invalid_value")),
        (CHAT, {**BODY, "seed": -1}, (400, "seed", "invalid_value")),
        (CHAT, {**BODY, "stop": [""]}, (400, "stop.0", "invalid_value")),
        (CHAT, {**BODY, "chat_template": "{{ 1 }}"}, (400, "chat_template", "unknown_parameter")),
        (CHAT, {**BODY, "model": "../../etc/passwd"}, (404, "model", "model_not_found")),
        ("/v1/completions", {"prompt": []}, (400, "prompt", "invalid_value")),
        ("/v1/completions", {"prompt": [[]]}, (400, "prompt.0", "invalid_value")),
        ("/v1/completions", {"prompt": [4096]}, (400, None, None)),
        ("/v1/completions", {"prompt": [-1]}, (400, "prompt.0", "invalid_value")),
        ("/v1/completions", {"prompt": "\ud800"}, (400, None, None)),
        ("/v1/completions", {"prompt": ["a"] * 33}, (400, "n", None)),
        ("/v1/embeddings", {"input": "a", "dimensions": 3}, (400, "dimensions", "invalid_value")),
        ("/v1/embeddings", {"input": ["a " * 600]}, (400, None, "context_length_exceeded")),
        ("/detokenize", {"tokens": [4096]}, (400, "tokens", "invalid_value")),
        ("/detokenize", {"tokens": "a"}, (400, "tokens", "invalid_value")),
        ("/tokenize", {}, (400, "prompt", "missing_required_parameter")),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(http, path, body, expected):
    assert problem(http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})) == expected


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "invalid_json"), (b"{", "invalid_json"), (b"\xff", "invalid_json"), (b"[" * 100_000, "invalid_json"),
     (b'{"messages": NaN}', "invalid_json"), (b"1" * 5000, "invalid_json"), (b'{"max_tokens": 1e999}', None)],
)  # fmt: skip
def test_what_is_no_json_is_refused(http, content, code):
    status, _, found = problem(http.post(CHAT, content=content, headers={"content-type": "application/json"}))
    assert status == 400
    assert code is None or found == code


def test_other_paths_methods_and_types_are_refused(http):
    assert problem(http.get("/v1/none"))[0] == 404
    assert problem(http.get("/../../etc/passwd"))[0] == 404
    assert problem(http.get("/v1/models/other")) == (404, "model", "model_not_found")
    assert problem(http.get(CHAT))[0] == 405
    # What a page of another site may send without asking.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        found = http.post(CHAT, content=json.dumps(BODY), headers={"content-type": kind})
        assert problem(found) == (415, None, "unsupported_media_type")


def test_a_body_has_a_limit(model):
    with running(model, max_body_bytes=1000) as (address, _), httpx.Client(base_url=address) as http:
        long = {"prompt": "a" * 1000}
        assert problem(http.post("/tokenize", json=long)) == (413, None, "body_too_large")

        def parts():
            yield b"a" * 600
            yield b"a" * 600

        found = http.post("/tokenize", content=parts(), headers={"content-type": "application/json"})
        assert problem(found) == (413, None, "body_too_large")
        assert http.post("/tokenize", json={"prompt": "a" * 900}).status_code == 200


def test_a_prompt_has_a_limit(model):
    with running(model, max_prompt_tokens=5) as (address, _), httpx.Client(base_url=address) as http:
        assert http.post(CHAT, json=BODY).status_code == 200
        long = {**BODY, "messages": [{"role": "user", "content": "Once upon a time there was"}]}
        assert problem(http.post(CHAT, json=long)) == (400, None, "context_length_exceeded")
        assert problem(http.post("/v1/embeddings", json={"input": "one two three four five six"}))[0] == 400


def test_keys(model):
    with running(model, api_keys=["one", KEY]) as (address, _), httpx.Client(base_url=address) as http:
        for headers in ({}, {"authorization": "Bearer on"}, {"authorization": KEY},
                        {"authorization": "Basic one"}):  # fmt: skip
            for path in ("/v1/models", "/metrics", "/none"):
                assert problem(http.get(path, headers=headers)) == (401, None, "invalid_api_key")
        for key in ("one", KEY):
            assert http.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert http.get("/health/live").status_code == http.get("/health/ready").status_code == 200
        assert http.get("/").status_code == 200


def test_origins(model, http):
    asked = {"origin": "https://example.org", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in http.get("/v1/models", headers=asked).headers
    assert http.options(CHAT, headers=asked).status_code == 405
    allowed = {"cors_origins": "https://example.org", "api_keys": KEY}
    with running(model, **allowed) as (address, _), httpx.Client(base_url=address) as other:
        found = other.options(CHAT, headers={**asked, "access-control-request-headers": "authorization"})
        assert found.status_code == 200
        assert found.headers["access-control-allow-origin"] == "https://example.org"
        found = other.options(CHAT, headers={**asked, "origin": "https://example.com"})
        assert "access-control-allow-origin" not in found.headers


def test_another_name_is_refused_where_it_listens_to_this_machine_only(model, http):
    # A name of somebody's that leads here would make their pages ours, for a browser.
    for name in ("example.org", "example.org:8080", "localhost.example.org", ""):
        assert problem(http.get("/v1/models", headers={"host": name})) == (403, None, "unknown_host")
    for name in ("localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]", "[::1]:80"):
        assert http.get("/v1/models", headers={"host": name}).status_code == 200
    with running(model, hosts="example.org") as (address, _), httpx.Client(base_url=address) as other:
        assert other.get("/v1/models", headers={"host": "example.org:80"}).status_code == 200


# ---- clients that go, and too many of them


def test_a_client_that_goes_ends_its_stream(model):
    with running(model, SlowEngine()) as (address, service), httpx.Client(base_url=address) as http:
        for path, body in ((CHAT, ENDLESS), ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 400, "n": 2})):
            with http.stream("POST", path, json={**body, "stream": True}) as found:
                lines = found.iter_lines()  # whose end would be that of the connection
                next(lines)
                assert service.active == 1
            until(lambda: service.active == 0, 2)
            until(lambda: service.engine.activity(model).running == 0, 2)
        assert service.engine.activity(model).waiting == 0


def test_a_client_that_goes_ends_what_it_waits_for(model):
    with running(model, SlowEngine(EngineConfig(max_batch_size=1))) as (address, service):
        content = json.dumps({**ENDLESS, "n": 8}).encode()
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                               b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                               % (len(content), content))  # fmt: skip
            until(lambda: service.engine.activity(model).running)
        until(lambda: service.active == 0, 2)
        until(lambda: not (service.engine.activity(model).running or service.engine.activity(model).waiting), 2)


def test_too_many_requests_are_told_to_come_again(model):
    with running(model, SlowEngine(), max_requests=1) as (address, service), httpx.Client(base_url=address) as http:
        with http.stream("POST", CHAT, json={**ENDLESS, "n": 8, "stream": True}) as found:
            lines = found.iter_lines()
            next(lines)
            refused = httpx.post(f"{address}{CHAT}", json=BODY)
            assert problem(refused) == (429, None, "too_many_requests")
            assert refused.headers["retry-after"] == "1"
            assert httpx.get(f"{address}/health/ready").status_code == 200
        until(lambda: service.active == 0)
        assert http.post(CHAT, json=BODY).status_code == 200


def test_a_full_queue_is_told_as_such(model):
    engine = SlowEngine(EngineConfig(max_batch_size=1, max_queue=1))
    with running(model, engine) as (address, _), httpx.Client(base_url=address, timeout=30) as http:
        assert problem(http.post(CHAT, json={**ENDLESS, "n": 20})) == (503, None, "server_overloaded")
        until(lambda: http.post(CHAT, json=BODY).status_code == 200)


def test_an_answer_that_takes_too_long_ends_with_what_there_is(model):
    with running(model, SlowEngine(), timeout_s=0.05) as (address, _), httpx.Client(base_url=address) as http:
        found = http.post(CHAT, json={**ENDLESS, "n": 8}).json()
        reasons = {choice["finish_reason"] for choice in found["choices"]}
        assert "timeout" in reasons
        assert found["usage"]["completion_tokens"] < 8 * 400


def test_vectors_that_take_too_long_or_that_nobody_waits_for_are_given_up(model):
    with running(model, timeout_s=0.001) as (address, _), httpx.Client(base_url=address) as http:
        assert problem(http.post("/v1/embeddings", json={"input": ["a " * 400] * 200})) == (503, None, "timeout")
    with running(model) as (address, service):
        begin = time.monotonic()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/embeddings", json={"input": ["a " * 400] * 2000}, timeout=0.3)
        until(lambda: service.active == 0, 5)
        assert time.monotonic() - begin < 6


# ---- beginning


def test_until_the_model_is_loaded_requests_are_told_so(monkeypatch):
    loads, engine = threading.Event(), InferenceEngine(EngineConfig(num_threads=1))
    load = engine.load_model

    def slowly(path=None, progress=None):
        assert loads.wait(20)
        return load(path, progress)

    monkeypatch.setattr(engine, "load_model", slowly)
    with running(engine=engine) as (address, service), httpx.Client(base_url=address) as http:
        assert http.get("/health/live").status_code == 200
        assert (http.get("/health/ready").status_code, http.get("/health/ready").json()) == (503, {"status": "loading"})
        assert problem(http.post(CHAT, json=BODY)) == (503, None, "model_loading")
        assert http.get("/metrics").status_code == 200
        loads.set()
        until(lambda: service.state == "ready")
        assert http.get("/health/ready").status_code == 200
        assert http.post(CHAT, json=BODY).status_code == 200


def test_a_model_that_cannot_be_loaded_is_told(tmp_path):
    with running(path=str(tmp_path / "none")) as (address, service), httpx.Client(base_url=address) as http:
        until(lambda: service.state == "failed")
        assert http.get("/health/ready").json() == {"status": "failed"}
        found = http.post(CHAT, json=BODY)
        assert problem(found) == (503, None, "model_failed")
        assert "none" in found.json()["error"]["message"]


# ---- the rest


def test_tokens_there_and_back(http, model):
    found = http.post("/tokenize", json={"prompt": "Once upon a time"}).json()
    assert found["tokens"] == model.encode("Once upon a time").tolist()
    assert (found["count"], found["max_model_len"]) == (5, 512)
    without = http.post("/tokenize", json={"prompt": "Once upon a time", "add_special_tokens": False}).json()
    assert without["tokens"] == found["tokens"][1:]
    assert http.post("/detokenize", json={"tokens": without["tokens"]}).json() == {"prompt": "Once upon a time"}


def test_what_is_counted(model):
    with running(model) as (address, _), httpx.Client(base_url=address) as http:
        http.post(CHAT, json={**BODY, "max_tokens": 7})
        http.post("/v1/completions", json={"prompt": "Once", "max_tokens": 3, "stream": True})
        http.get("/none")
        found = dict(line.rsplit(" ", 1) for line in http.get("/metrics").text.splitlines() if line[:1] != "#")
    expected = {
        'bitnet_requests_total{path="/v1/chat/completions",status="200"}': 1,
        'bitnet_requests_total{path="other",status="404"}': 1,
        "bitnet_generated_tokens_total": 10, "bitnet_prompt_tokens_total": 7,
        "bitnet_time_to_first_token_seconds_count": 2,
        "bitnet_inter_token_seconds_count": 8, 'bitnet_answers_total{reason="length"}': 2, "bitnet_ready": 1,
        "bitnet_queue_waiting": 0, "bitnet_batch_running": 0, "bitnet_kv_pages_used": 0, "bitnet_requests_active": 0,
    }  # fmt: skip
    assert {name: float(found[name]) for name in expected} == expected
    assert float(found['bitnet_memory_bytes{tag="weights"}']) > 0
    assert float(found["bitnet_steps"]) >= 8


def test_the_page_is_one_file(http):
    found = http.get("/")
    assert found.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in found.headers["content-security-policy"]
    assert "<script src" not in found.text
    assert "http" not in found.text.replace("http-equiv", "")  # nothing of another place


def test_the_document_has_every_path(http, model):
    from jsonschema import Draft202012Validator

    from bitnet.server import create_app

    found = http.get("/openapi.json").json()
    assert found["openapi"].startswith("3.1")
    routes = {route.path.replace(":path", "") for route in create_app(model=model).routes} - {"/", "/openapi.json"}
    assert set(found["paths"]) == routes
    for one in found["paths"].values():
        if "post" in one:
            Draft202012Validator.check_schema(one["post"]["requestBody"]["content"]["application/json"]["schema"])
