"""Errors as OpenAI writes them: a status, and ``{"error": {"message", "type", "param", "code"}}``."""

import builtins
from typing import Any, NoReturn

from starlette.responses import JSONResponse

from bitnet.errors import BitNetError, ConfigurationError, FormatError, InferenceError, QueueFullError

__all__ = ["Problem", "problem_of", "refuse"]

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
         500: "server_error", 503: "server_error"}  # fmt: skip


class Problem(Exception):
    """What a request is answered that cannot be served.

    Parameters
    ----------
    status : int
        Of HTTP.
    message : str
    param : str, optional
        Which part of the request is meant.
    code : str, optional
        A word for programs.
    headers : dict, optional
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def refuse(status: int, message: str, param: str | None = None, code: str | None = None, **headers: str) -> NoReturn:
    """Answer a request with an error.

    Parameters
    ----------
    status, message, param, code
        As of `Problem`.
    **headers
        Their names with underscores.

    Raises
    ------
    Problem
    """
    raise Problem(status, message, param, code, {name.replace("_", "-"): text for name, text in headers.items()})


def problem_of(error: BaseException) -> Problem:
    """Find what a client is told of an error.

    Parameters
    ----------
    error : Exception

    Returns
    -------
    Problem
    """
    if isinstance(error, Problem):
        return error
    message = getattr(error, "message", None) or str(error)
    if isinstance(error, QueueFullError):
        return Problem(503, message, code="server_overloaded", headers={"Retry-After": "1"})
    if isinstance(error, builtins.MemoryError):
        return Problem(503, message, code="out_of_memory", headers={"Retry-After": "1"})
    if isinstance(error, InferenceError) and any(word in message for word in ("closed", "cancelled", "stopped")):
        return Problem(503, "the server is stopping", code="server_stopping")
    if isinstance(error, InferenceError | ConfigurationError | FormatError):
        code = "context_length_exceeded" if "of the context" in message else None
        return Problem(400, message, code=code)
    if isinstance(error, BitNetError):
        return Problem(503, message)
    return Problem(500, "an error of the server, which its log has", code="internal_error")
