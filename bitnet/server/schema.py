"""JSON schemas of the requests, by which they are checked, and the OpenAPI document that is made of them."""

import functools
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from bitnet.server.problems import refuse

__all__ = ["CHAT", "COMPLETION", "DETOKENIZE", "EMBEDDING", "TOKENIZE", "check", "document"]

Schema = dict[str, Any]

TOKEN: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
TEXTS: Schema = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2048},
        {"type": "array", "items": TOKEN, "minItems": 1},
        {"type": "array", "items": {"type": "array", "items": TOKEN, "minItems": 1}, "minItems": 1, "maxItems": 2048},
    ]
}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _number(least: float, most: float, meaning: str) -> Schema:
    return {"type": ["number", "null"], "minimum": least, "maximum": most, "description": meaning}


def _whole(least: int, most: int, meaning: str) -> Schema:
    return {"type": ["integer", "null"], "minimum": least, "maximum": most, "description": meaning}


def _flag(meaning: str) -> Schema:
    return {"type": ["boolean", "null"], "description": meaning}


def _object(properties: Schema, required: tuple[str, ...] = ()) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


# What says who asks, or how to store it: nothing is stored here, and nobody is told apart.
OF_NO_CONCERN: Schema = {
    "user": {"type": ["string", "null"]}, "store": {"type": ["boolean", "null"]},
    "metadata": {"type": ["object", "null"]}, "safety_identifier": {"type": ["string", "null"]},
    "prompt_cache_key": {"type": ["string", "null"]}, "service_tier": {"type": ["string", "null"]},
}  # fmt: skip

MODEL: Schema = {"type": ["string", "null"], "description": "As /v1/models has it; by default the one there is."}

SAMPLING: Schema = {
    "model": MODEL,
    "n": _whole(1, 128, "Answers to each prompt."),
    "temperature": _number(0, 2, "0 takes the most likely token; if nothing is said of sampling, as the model wants."),
    "top_p": _number(0, 1, "Draw from the most likely tokens that together have this probability."),
    "top_k": _whole(0, 2**31 - 1, "Draw from so many most likely tokens; 0 for all. Not of OpenAI's."),
    "min_p": _number(0, 1, "Draw from tokens at least so likely, relative to the most likely one. Not of OpenAI's."),
    "repetition_penalty": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 100,
                           "description": "As Transformers has it. Not of OpenAI's."},
    "frequency_penalty": _number(-2, 2, "Subtracted from a token's logit for each time the answer has it."),
    "presence_penalty": _number(-2, 2, "Subtracted from a token's logit if the answer has it."),
    "logit_bias": {"type": ["object", "null"], "maxProperties": 1024, "propertyNames": {"pattern": "^[0-9]{1,9}$"},
                   "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
                   "description": "Token to what is added to its logit."},
    "seed": _whole(0, 2**63 - 1, "Of the drawing: the same request then has the same answer."),
    "max_tokens": _whole(1, 2**31 - 1, "The most tokens of an answer."),
    "stop": _nullable({"anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": 16},
    ], "description": "Texts that end an answer, and are no part of it."}),
    "stream": _flag("Whether to send the answer as it comes, as server-sent events."),
    "stream_options": _nullable(_object({"include_usage": _flag("Whether to count the tokens in a last event.")})),
    "priority": _whole(-1000, 1000, "What waits with a higher one begins first. Not of OpenAI's."),
    **OF_NO_CONCERN,
}  # fmt: skip

PART = {"type": "object", "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
        "required": ["type", "text"]}  # fmt: skip
CALL = {"type": "object", "properties": {
    "id": {"type": "string"}, "type": {"const": "function"},
    "function": {"type": "object", "properties": {"name": {"type": "string"}, "arguments": {"type": "string"}},
                 "required": ["name", "arguments"]},
}, "required": ["function"]}  # fmt: skip
MESSAGE: Schema = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": _nullable({"anyOf": [{"type": "string"}, {"type": "array", "items": PART}]}),
        "name": {"type": ["string", "null"]}, "tool_call_id": {"type": ["string", "null"]},
        "tool_calls": _nullable({"type": "array", "items": CALL}), "refusal": {"type": ["string", "null"]},
    },
    "required": ["role"], "additionalProperties": False,
}  # fmt: skip
TOOL: Schema = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {"type": "object", "properties": {
            "name": {"type": "string", "minLength": 1}, "description": {"type": ["string", "null"]},
            "parameters": {"type": ["object", "null"]}, "strict": {"type": ["boolean", "null"]},
        }, "required": ["name"]},
    },
    "required": ["type", "function"],
}  # fmt: skip

NAMED_TOOL: Schema = {
    "type": "object", "properties": {
        "type": {"const": "function"},
        "function": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    }, "required": ["type", "function"],
}  # fmt: skip
JSON_SCHEMA: Schema = {
    "type": "object", "properties": {
        "name": {"type": "string"}, "description": {"type": ["string", "null"]}, "schema": {"type": "object"},
        "strict": {"type": ["boolean", "null"]},
    }, "required": ["name", "schema"],
}  # fmt: skip

CHAT = _object({
    "messages": {"type": "array", "items": MESSAGE, "minItems": 1},
    **SAMPLING,
    "max_completion_tokens": _whole(1, 2**31 - 1, "The most tokens of an answer."),
    "tools": _nullable({"type": "array", "items": TOOL, "maxItems": 128,
                        "description": "Functions, for the model's template; calls of them are taken out of answers."}),
    "tool_choice": {"anyOf": [{"enum": ["auto", "none", "required", None]}, NAMED_TOOL]},
    "parallel_tool_calls": {"enum": [True, None]},
    "response_format": _nullable({"anyOf": [
        {"type": "object", "properties": {"type": {"enum": ["text", "json_object"]}}, "required": ["type"],
         "additionalProperties": False},
        {"type": "object", "properties": {"type": {"const": "json_schema"}, "json_schema": JSON_SCHEMA},
         "required": ["type", "json_schema"], "additionalProperties": False},
    ], "description": "What the answer has to be; it is, unless it is cut short."}),
    "logprobs": _flag("Whether to give the logarithm of each token's probability."),
    "top_logprobs": _whole(0, 20, "How many most likely tokens to name with theirs."),
}, ("messages",))  # fmt: skip

COMPLETION = _object({
    "prompt": TEXTS,
    **SAMPLING,
    "max_tokens": _whole(0, 2**31 - 1, "The most tokens of an answer; 0 with echo only."),
    "logprobs": _whole(0, 20, "Give the logarithm of each token's probability, and name so many most likely ones."),
    "echo": _flag("Whether the answer begins with the prompt."),
}, ("prompt",))  # fmt: skip

EMBEDDING = _object({
    "input": TEXTS, "model": MODEL,
    "encoding_format": {"enum": ["float", "base64", None]},
    "dimensions": _whole(1, 2**31 - 1, "Has to be as many as the model's vectors have."),
    **OF_NO_CONCERN,
}, ("input",))  # fmt: skip

TOKENIZE = _object({
    "model": MODEL, "prompt": {"type": "string"},
    "add_special_tokens": _flag("Whether to begin as the model's texts begin; by default yes."),
}, ("prompt",))  # fmt: skip

DETOKENIZE = _object({
    "model": MODEL, "tokens": {"type": "array", "items": TOKEN, "maxItems": 1_000_000},
}, ("tokens",))  # fmt: skip


@functools.cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(REQUESTS[name][1])


REQUESTS: dict[str, tuple[str, Schema]] = {
    "/v1/chat/completions": ("Answer the last message of a conversation.", CHAT),
    "/v1/completions": ("Go on from a text.", COMPLETION),
    "/v1/embeddings": ("Make vectors of texts.", EMBEDDING),
    "/tokenize": ("Make tokens of a text.", TOKENIZE),
    "/detokenize": ("Make a text of tokens.", DETOKENIZE),
}
"""Path, what it does, and the schema of its body."""

PLAIN = {
    "/v1/models": "List the models: there is one.", "/v1/models/{model}": "Describe a model.",
    "/health/live": "Whether the process lives.",
    "/health/ready": "Whether the model is loaded, and requests are taken.",
    "/metrics": "Counts and times, as Prometheus reads them.",
}  # fmt: skip


def check(path: str, body: Any) -> dict[str, Any]:
    """Hold a request's body to its schema.

    Parameters
    ----------
    path : str
    body : object
        What its JSON says.

    Returns
    -------
    dict
        The same, without nulls: they say what a missing name says.

    Raises
    ------
    Problem
    """
    error = best_match(_validator(path).iter_errors(body))
    if error is not None:
        where = ".".join(map(str, error.absolute_path))
        if error.validator == "additionalProperties":
            where = _below(where, min(set(error.instance) - set(error.schema["properties"])))
            refuse(400, f"'{where[:200]}' is not known here", where[:200], "unknown_parameter")
        if error.validator == "required":
            where = _below(where, next(name for name in error.validator_value if name not in error.instance))
            refuse(400, f"'{where}' is missing", where, "missing_required_parameter")
        what = f"'{where}'" if where else "the body"
        refuse(400, f"{what} cannot be used: {error.message[:300]}", where or None, "invalid_value")
    return {name: value for name, value in body.items() if value is not None}


STATUSES = (400, 401, 403, 404, 405, 408, 413, 415, 429, 503)
"""Of errors."""


def _below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def document(version: str) -> Schema:
    """Write the OpenAPI document of the server.

    Parameters
    ----------
    version : str
        Of the package.

    Returns
    -------
    dict
    """
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    told = {str(status): {"description": "An error.", "content": content} for status in STATUSES}
    answer = {"200": {"description": "Done.", "content": {
        "application/json": {"schema": {"type": "object"}},
        # Of an event, as tools that read OpenAPI take it apart.
        "text/event-stream": {"schema": {"type": "object", "properties": {"data": {"type": "string"}}}},
    }}}  # fmt: skip
    paths: Schema = {
        path: {"post": {
            "summary": what, "operationId": path.strip("/").replace("/", "_"), "security": [{}, {"key": []}],
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": {**answer, **told},
        }}
        for path, (what, schema) in REQUESTS.items()
    }  # fmt: skip
    for path, what in PLAIN.items():
        names = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}] if "{" in path else []
        plain = {"200": {"description": "Done.", "content": {"application/json": {}, "text/plain": {}}}}
        paths[path] = {"get": {"summary": what, "operationId": path.strip("/").replace("/", "_"), "parameters": names,
                               "security": [{}, {"key": []}], "responses": {**plain, **told}}}  # fmt: skip
    error = _object({"error": _object({
        "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]},
        "code": {"type": ["string", "null"]},
    }, ("message", "type", "param", "code"))}, ("error",))  # fmt: skip
    return {
        "openapi": "3.1.0", "info": {"title": "bitnet", "version": version}, "paths": paths,
        "components": {"schemas": {"Error": error}, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }  # fmt: skip
