"""How a server is reached, and what it allows: `ServerConfig`. It needs no Starlette."""

import dataclasses
import string
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from bitnet._checks import Config, checks_names, foreign

__all__ = ["ServerConfig"]

SIZES = range(1, 1 << 31)
NAME = frozenset(string.ascii_letters + string.digits + "-_./:")


@checks_names
@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig(Config):
    """How a server is reached, and what it allows.

    Parameters
    ----------
    name : str, optional
        What clients call the model; by default after its path.
    host : str
        The address to listen at; by default only this machine can reach it.
    port : int
        0 takes a free one.
    api_keys : str or list of str, optional
        One of them is to be in each request, as ``Authorization: Bearer KEY``. None asks for none.
    cors_origins : str or list of str, optional
        Origins, as ``https://example.org``, whose pages may use the server; None for its own page only.
    hosts : str or list of str, optional
        Names by which it may be addressed, beside those of the loopback interface. None for any name where it listens
        at another address than that; at that for no other, so that no web site can pass for it.
    chat_template : str, optional
        Instead of the model's: a source in Jinja, or "plain". A model without one gets "plain".
    max_body_bytes : int
        Of a request.
    max_prompt_tokens : int, optional
        None for what the context holds.
    max_requests : int
        Requests in progress that generate or embed; one more is told to come again.
    max_choices : int
        Answers that one request may ask for: prompts times `n`.
    timeout_s : float
        Seconds after which an answer ends with what there is.
    shutdown_s : float
        Seconds that requests in progress have when the server is told to stop; then they end with an error.
    """

    FOREIGN_NAMES: ClassVar[Mapping[str, str]] = foreign(
        name="served_model_name model_name alias", host="address bind listen", api_keys="api_key keys",
        cors_origins="allowed_origins cors", max_requests="max_concurrent_requests concurrency",
        timeout_s="timeout request_timeout", shutdown_s="grace graceful_timeout",
    )  # fmt: skip

    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: str | Iterable[str] | None = None
    cors_origins: str | Iterable[str] | None = None
    hosts: str | Iterable[str] | None = None
    chat_template: str | None = None
    max_body_bytes: int = 4 << 20
    max_prompt_tokens: int | None = None
    max_requests: int = 256
    max_choices: int = 32
    timeout_s: float = 600.0
    shutdown_s: float = 30.0

    def __post_init__(self) -> None:
        if self.name is not None and not (isinstance(self.name, str) and self.name and set(self.name) <= NAME):
            raise self._refused("name", "letters, digits and -_./:")
        if not isinstance(self.host, str) or not self.host:
            raise self._refused("host", "a name or an address")
        self._whole("port", range(1 << 16))
        for name in ("api_keys", "cors_origins", "hosts"):
            self._strings(name, "a string or a list of strings, none of them empty")
        if self.chat_template is not None and not isinstance(self.chat_template, str):
            raise self._refused("chat_template", "a string, or None")
        self._whole("max_prompt_tokens", SIZES, or_none=True)
        for name in ("max_body_bytes", "max_requests", "max_choices"):
            self._whole(name, SIZES)
        for name in ("timeout_s", "shutdown_s"):
            self._real(name, "a finite number of seconds above 0", lambda number: number > 0)

    def strings(self, name: str) -> tuple[str, ...]:
        """Give what a field lists.

        Parameters
        ----------
        name : {"api_keys", "cors_origins", "hosts"}

        Returns
        -------
        tuple of str
        """
        found: Any = getattr(self, name) or ()
        return (found,) if isinstance(found, str) else tuple(found)
