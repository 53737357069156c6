"""A request's JSON as the settings of generations."""

from typing import Any

import bitnet
from bitnet.server.problems import refuse
from bitnet.server.service import Service

__all__ = ["checked_choices", "limited", "prompt_list", "settings"]

DRAWING = ("temperature", "top_p", "top_k", "min_p")


def settings(
    body: dict[str, Any], model: bitnet.Model, most: int, logprobs: int | None = None
) -> bitnet.GenerationConfig:
    """Find how tokens are chosen.

    What a request says of the drawing counts against OpenAI's defaults, which draw from all tokens at temperature 1;
    where it says nothing, the model's own ways hold.

    Parameters
    ----------
    body : dict
        Checked, without nulls.
    model : Model
    most : int
        Tokens of an answer, where the request does not say.
    logprobs : int, optional
        How many most likely tokens it wants named; None where it wants no probabilities.

    Returns
    -------
    GenerationConfig
    """
    fields: dict[str, Any] = {"max_new_tokens": body.get("max_completion_tokens", body.get("max_tokens", most))}
    drawing = {name: body[name] for name in DRAWING if name in body}
    base = model.generation_config.replace(min_new_tokens=0)
    if drawing.get("temperature") == 0:
        base = base.replace(do_sample=False)
    elif drawing:
        base = base.replace(do_sample=True, temperature=1.0, top_k=None, top_p=1.0, min_p=None)
        fields |= drawing
        if fields.get("top_p") == 0:  # as OpenAI takes it: the most likely token
            fields["top_p"] = 1e-9
    if "repetition_penalty" in body:
        fields["repetition_penalty"] = body["repetition_penalty"]
    if body.get("stop"):
        fields["stop_strings"] = body["stop"]
    for name in ("seed", "frequency_penalty", "presence_penalty"):
        if name in body:
            fields[name] = body[name]
    if body.get("logit_bias"):
        fields["logit_bias"] = {int(token): bias for token, bias in body["logit_bias"].items()}
        beyond = max(fields["logit_bias"])
        if beyond >= model.config.vocab_size:
            refuse(400, f"token {beyond} is not in the vocabulary of {model.config.vocab_size}", "logit_bias")
    if logprobs is not None:
        fields["logprobs"] = logprobs
    found: bitnet.GenerationConfig = base.replace(**fields)
    return found


def prompt_list(given: Any) -> list[Any]:
    """Give the prompts of a request: texts, or lists of tokens.

    Parameters
    ----------
    given : str, list of str, list of int or list of list of int

    Returns
    -------
    list
    """
    if isinstance(given, str):
        return [given]
    return [given] if isinstance(given[0], int) else given


def checked_choices(service: Service, count: int) -> int:
    """Refuse a request that asks for too many answers.

    Parameters
    ----------
    service : Service
    count : int

    Returns
    -------
    int
    """
    if count > service.config.max_choices:
        limit = service.config.max_choices
        refuse(400, f"{count} answers are asked for (prompts times n), and {limit} is the limit", "n")
    return count


def limited(service: Service, ids: Any) -> Any:
    """Refuse a prompt that is too long.

    Parameters
    ----------
    service : Service
    ids : ndarray of int32

    Returns
    -------
    ndarray of int32
    """
    most = service.config.max_prompt_tokens
    if most is not None and len(ids) > most:
        refuse(400, f"the prompt has {len(ids)} tokens, and {most} is the limit", code="context_length_exceeded")
    return ids
