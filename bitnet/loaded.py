"""A model with an engine of its own: `bitnet.load`."""

import os
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as ListOf
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bitnet.config import EngineConfig, GenerationConfig
from bitnet.embedding import embedded
from bitnet.engine import InferenceEngine, Logits, Prompt, Stream
from bitnet.grammar import Grammar
from bitnet.model import Model
from bitnet.scoring import Score

__all__ = ["LoadedModel", "load"]


class LoadedModel:
    """A model and an engine of its own: the short way. A context manager.

    Attributes
    ----------
    model : Model
    engine : InferenceEngine
    """

    def __init__(self, model: Model, engine: InferenceEngine) -> None:
        self.model, self.engine = model, engine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.engine.close()

    def generate(
        self, prompt: Prompt | ListOf[Prompt], config: GenerationConfig | None = None, *, priority: int = 0,
        timeout: float | None = None, logits_processor: Any = None, grammar: Grammar | None = None,
        on_piece: Any = None, streamer: Any = None, **settings: Any,
    ) -> Any:  # fmt: skip
        """Go on from a prompt or many, as `InferenceEngine.generate`; settings, of `GenerationConfig`, change `config`
        or the model's own defaults."""
        return self.engine.generate(
            self.model, prompt, self._config(config, settings), priority=priority, timeout=timeout,
            logits_processor=logits_processor, grammar=grammar, on_piece=on_piece, streamer=streamer,
        )  # fmt: skip

    def stream(
        self, prompt: Prompt, config: GenerationConfig | None = None, *, priority: int = 0,
        timeout: float | None = None, logits_processor: Any = None, grammar: Grammar | None = None,
        on_piece: Any = None, **settings: Any,
    ) -> Stream:  # fmt: skip
        """Go on from a prompt, piece by piece, as `InferenceEngine.stream`."""
        return self.engine.stream(
            self.model, prompt, self._config(config, settings), priority=priority, timeout=timeout,
            logits_processor=logits_processor, grammar=grammar, on_piece=on_piece,
        )  # fmt: skip

    def chat(
        self, messages: ListOf[Mapping[str, Any]], config: GenerationConfig | None = None, *, tools: Any = None,
        template: str | None = None, template_variables: Mapping[str, Any] | None = None, stream: bool = False,
        priority: int = 0, timeout: float | None = None, logits_processor: Any = None, grammar: Grammar | None = None,
        on_piece: Any = None, **settings: Any,
    ) -> Any:  # fmt: skip
        """Answer the last message of a conversation, as `InferenceEngine.chat` does."""
        return self.engine.chat(
            self.model, messages, self._config(config, settings), tools=tools, template=template,
            template_variables=template_variables, stream=stream, priority=priority, timeout=timeout,
            logits_processor=logits_processor, grammar=grammar, on_piece=on_piece,
        )  # fmt: skip

    def encode(
        self,
        sentences: str | ListOf[str],
        *,
        prompt: str = "",
        batch_size: int = 32,
        normalize_embeddings: bool = True,
        progress: Callable[[int, int], object] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Make vectors of texts, as sentence-transformers' method of this name does.

        Parameters
        ----------
        sentences : str or list of str
        prompt : str, optional
            An instruction that is put in front of each, as models want it of queries.
        batch_size, progress
            As of `InferenceEngine.embed`.
        normalize_embeddings : bool, optional
            Whether each vector has length 1.

        Returns
        -------
        ndarray of float32, shape (texts, hidden_size), or (hidden_size,) of one text
        """
        texts = [sentences] if isinstance(sentences, str) else sentences
        found = embedded(self.engine, self.model, texts, None, normalize_embeddings, batch_size, progress, prompt)
        return found[0] if isinstance(sentences, str) else found

    def score(
        self, texts: Iterable[Any], contexts: Iterable[Any] | None = None, *, batch_size: int = 32
    ) -> list[Score]:
        """Say how likely the model finds each text, as `InferenceEngine.score` does."""
        return self.engine.score(self.model, texts, contexts, batch_size=batch_size)

    def infer(self, tokens: Prompt, *, last_only: bool = False) -> Logits:
        """Compute the logits of one sequence."""
        return self.engine.infer(self.model, tokens, last_only=last_only)

    def infer_batch(self, batch: Iterable[Prompt], *, last_only: bool = False) -> list[Logits]:
        """Compute the logits of several sequences together."""
        return self.engine.infer_batch(self.model, batch, last_only=last_only)

    def _config(self, config: GenerationConfig | None, settings: Mapping[str, Any]) -> GenerationConfig:
        config = config or self.model.generation_config
        return config.replace(**settings) if settings else config

    def __repr__(self) -> str:
        return f"LoadedModel({self.model!r})"


def load(
    path: str | os.PathLike[str] | None = None, config: EngineConfig | None = None, **settings: Any
) -> LoadedModel:
    """Load a checkpoint, and have it ready: ``bitnet.load().generate("Once upon a time")``.

    Parameters
    ----------
    path : str, optional
        A Hugging Face folder, or a GGUF file; by default the model that comes with the package.
    config : EngineConfig, optional
    **settings
        Of `EngineConfig`.

    Returns
    -------
    LoadedModel
    """
    config = config or EngineConfig()
    engine = InferenceEngine(config.replace(**settings) if settings else config)
    return LoadedModel(engine.load_model(path), engine)
