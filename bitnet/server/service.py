"""The engine, the model, and what they are doing."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bitnet
from bitnet.compat.pieces import Pieces
from bitnet.server.config import ServerConfig
from bitnet.server.metrics import Metrics
from bitnet.server.problems import refuse

__all__ = ["Service"]

THREADS = 8  # for what takes time and is no step of the engine: tokens of prompts, grammars, vectors


class Service:
    """What the endpoints share.

    Parameters
    ----------
    config : ServerConfig
    engine : InferenceEngine
    model : Model, optional
        What `load` is to give, if it is there already.
    path : str, optional
        Of what `load` loads; by default the model that comes with the package.

    Attributes
    ----------
    state : {"loading", "ready", "failed", "stopping"}
    error : Exception or None
        Why loading failed.
    active : int
        Requests in progress that generate or embed.
    created : int
        Seconds since 1970, of the model for its clients.
    threads : Executor
    metrics : Metrics
    """

    def __init__(
        self, config: ServerConfig, engine: bitnet.InferenceEngine, model: bitnet.Model | None = None,
        path: str | None = None,
    ) -> None:  # fmt: skip
        self.config, self.engine, self._model, self._path = config, engine, model, path
        self.state = "loading" if model is None else "ready"
        self.error: BaseException | None = None
        self.active, self.created = 0, int(time.time())
        self.threads = ThreadPoolExecutor(THREADS, "bitnet-server")
        self.metrics = Metrics(self)
        self._pieces: Pieces | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def name(self) -> str:
        """What clients call the model."""
        if self.config.name is not None:
            return self.config.name
        path = self._path if self._model is None else self._model.path
        if path is None or os.path.basename(os.path.normpath(path)) == "assets":
            return "bitnet-stories"
        # An id of the Hub is a name; of a path the end is.
        is_id = path.count("/") == 1 and not os.path.exists(path)
        return path if is_id else os.path.basename(os.path.normpath(path)).removesuffix(".gguf")

    @property
    def model(self) -> bitnet.Model:
        """The model, or an answer that says why there is none."""
        if self.state == "stopping":
            refuse(503, "the server is stopping", code="server_stopping")
        if self.state == "failed":
            refuse(503, f"the model could not be loaded: {self.error}", code="model_failed")
        if self._model is None:
            refuse(503, "the model is being loaded", code="model_loading", Retry_After="2")
        return self._model

    def start(self) -> None:
        """Load the model in a thread, if it is not there."""
        if self._model is None:
            threading.Thread(target=self._load, name="bitnet-load", daemon=True).start()

    def _load(self) -> None:
        try:
            self._model = self.engine.load_model(self._path)
        except BaseException as error:
            self.error, self.state = error, "failed"
        else:
            if self.state == "loading":
                self.state = "ready"

    def text_of(self, token: int) -> bytes:
        """Give the bytes of a token.

        Parameters
        ----------
        token : int

        Returns
        -------
        bytes
        """
        if self._pieces is None:
            self._pieces = Pieces(self.model.tokenizer)
        return self._pieces.detokenize([token], is_start=False, special=True)

    def named(self, name: Any) -> bitnet.Model:
        """Give the model that a request names.

        Parameters
        ----------
        name : str or None
            None for the one there is.

        Returns
        -------
        Model
        """
        model = self.model
        if name is not None and name != self.name:
            refuse(404, f"there is no model '{name}' here, only '{self.name}'", "model", "model_not_found")
        return model

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count a request in progress, or refuse it if there are too many."""
        if self.active >= self.config.max_requests:
            refuse(429, f"{self.active} requests are in progress, and that is the limit; come again",
                   code="too_many_requests", Retry_After="1")  # fmt: skip
        self.active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.active -= 1
            if not self.active:
                self._idle.set()

    async def stop(self) -> None:
        """Take no more requests; let those in progress end by the deadline, and end them there."""
        self.state = "stopping"
        try:
            await asyncio.wait_for(self._idle.wait(), self.config.shutdown_s)
        except TimeoutError:
            self.engine.cancel()

    def close(self) -> None:
        """Give everything back."""
        self.engine.close()
        self.threads.shutdown(wait=False, cancel_futures=True)

    async def call(self, function: Any, *arguments: Any, **named: Any) -> Any:
        """Call a function that takes time, in a thread.

        Parameters
        ----------
        function : callable
        *arguments, **named
            Its own.

        Returns
        -------
        object
        """
        return await asyncio.get_running_loop().run_in_executor(self.threads, lambda: function(*arguments, **named))
