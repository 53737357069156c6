"""What ``bitnet chat`` keeps: the messages, which of them fit into the context, and the file they are saved in."""

import contextlib
import json
import os
from typing import Any

from bitnet.errors import ConfigurationError, ModelLoadError

__all__ = ["Conversation"]

MAX_FILE = 1 << 26  # bytes of a saved conversation


class Conversation:
    """Messages, the first of which may be the system's.

    Parameters
    ----------
    model : Model
    template : str or None
        Instead of the model's.
    system : str or None
        What the system says.

    Attributes
    ----------
    messages : list of dict
        Without the system's.
    """

    def __init__(self, model: Any, template: str | None = None, system: str | None = None) -> None:
        self._model, self._template = model, template
        self.system = system
        self.messages: list[dict[str, Any]] = []

    def every(self) -> list[dict[str, Any]]:
        """Give all messages, with the system's.

        Returns
        -------
        list of dict
        """
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*first, *self.messages]

    def ids(self, messages: list[dict[str, Any]]) -> Any:
        """Make the tokens of a prompt.

        Parameters
        ----------
        messages : list of dict

        Returns
        -------
        ndarray of int32, shape (tokens,)
        """
        return self._model.encode(self._model.chat_prompt(messages, template=self._template))

    def prompt(self, room: int) -> tuple[Any, int]:
        """Make a prompt of as many of the last messages as fit.

        Parameters
        ----------
        room : int
            Tokens that the answer may take; a quarter of the context at most is kept free for it.

        Returns
        -------
        ids : ndarray of int32, shape (tokens,)
        left_out : int
            How many of the oldest messages do not fit.
        """
        context = self._model.program.context
        most = context - min(room, max(context // 4, 1))
        every = self.every()
        first = len(every) - len(self.messages)
        left_out = 0
        ids = self.ids(every)
        # Turn by turn: templates want a user's message first.
        while len(ids) > most and left_out + 2 < len(self.messages):
            left_out += 2
            ids = self.ids([*every[:first], *every[first + left_out :]])
        return ids, left_out

    def save(self, path: str) -> None:
        """Write the conversation to a file, at once or not at all. Only a file of this kind is replaced.

        Parameters
        ----------
        path : str
        """
        if os.path.exists(path) and not isinstance(_read(path).get("messages"), list):
            raise ModelLoadError.exists(path)
        temporary = f"{path}.{os.getpid()}.tmp"
        try:
            with open(temporary, "x", encoding="utf-8", errors="replace") as file:
                content = {"model": str(self._model.path), "messages": self.every()}
                json.dump(content, file, ensure_ascii=False, indent=1)
            os.replace(temporary, path)
        except OSError as error:
            raise ModelLoadError.unwritable(path, error.strerror or str(error)) from error
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    def load(self, path: str) -> None:
        """Go on with a conversation that was saved.

        Parameters
        ----------
        path : str
        """
        messages = _read(path).get("messages")
        if not isinstance(messages, list) or not all(_is_message(one) for one in messages):
            raise ConfigurationError.value("chat", "file", path, "a conversation: an object with 'messages', each of "
                                           "which has a 'role' and a 'content'")  # fmt: skip
        self.ids(messages)  # the template has its own opinion
        system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
        self.system, self.messages = system, messages[system is not None :]


def _is_message(one: Any) -> bool:
    return isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ModelLoadError.unreadable(path, error.strerror or str(error)) from error
    try:
        found = json.loads(data) if len(data) <= MAX_FILE else None
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}
