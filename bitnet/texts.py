"""What an engine does with texts rather than tokens: conversations, vectors of texts, and how likely they are."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet.embedding import embedded
from bitnet.scoring import Score, scored

__all__ = ["TextMethods"]


class TextMethods:
    """The part of `InferenceEngine` that deals with texts."""

    def chat(
        self,
        model: Any,
        messages: Sequence[Mapping[str, Any]],
        config: Any = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        template_variables: Mapping[str, Any] | None = None,
        stream: bool = False,
        **options: Any,
    ) -> Any:
        """Answer the last message of a conversation.

        Parameters
        ----------
        model : Model
        messages : list of dict
            Each with a ``"role"`` and a ``"content"``, as of `bitnet.chat.ChatTemplate.render`.
        config : GenerationConfig, optional
            By default the model's own, `Model.generation_config`.
        tools : list of dict, optional
            JSON schemas of functions, for the template. What the model answers is text: `bitnet.chat.parse_tool_calls`
            takes the calls out of it.
        template : str, optional
            Instead of the model's: a source in Jinja, or "plain", for models that were not trained to chat.
        template_variables : dict, optional
            What else the template may ask for, as ``{"enable_thinking": False}``.
        stream : bool, optional
            Whether to give the answer as it comes.
        **options
            As of `stream`.

        Returns
        -------
        Completion, or Stream of `Piece` where `stream` is true

        Raises
        ------
        ModelLoadError
            If the model has no template, and none is given.
        FormatError
            If the template fails or goes beyond its bounds.
        InferenceError
            If the conversation has more tokens than the context holds.
        """
        prompt = model.chat_prompt(messages, tools=tools, template=template, **(template_variables or {}))
        pieces = self.stream(model, prompt, config, **options)  # type: ignore[attr-defined]
        if stream:
            return pieces
        for _ in pieces:
            pass
        return pieces.completion

    def embed(
        self,
        model: Any,
        texts: Iterable[Any],
        *,
        pooling: str | None = None,
        normalize: bool = True,
        batch_size: int = 32,
        progress: Callable[[int, int], object] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Make a vector of each text.

        Parameters
        ----------
        model : Model
            One that was trained for it, as BitNet-embedding; others give vectors that mean little.
        texts : list of (str or sequence of int)
        pooling : {"last", "mean", "cls"}, optional
            By default that of the model.
        normalize : bool, optional
            Whether each vector has length 1.
        batch_size : int, optional
            Texts that are run together.
        progress : callable, optional
            Called as ``progress(done, total)``, in texts.

        Returns
        -------
        ndarray of float32, shape (texts, hidden_size)
            Of each text as if it were alone, bit for bit.

        Raises
        ------
        InferenceError
            If a text has more tokens than the context holds.
        """
        return embedded(self, model, texts, pooling, normalize, batch_size, progress)

    def score(
        self,
        model: Any,
        texts: Iterable[Any],
        contexts: Iterable[Any] | None = None,
        *,
        batch_size: int = 32,
        progress: Callable[[int, int], object] | None = None,
        top_logprobs: int | None = None,
    ) -> list[Score]:
        """Say how likely a model finds each text.

        Parameters
        ----------
        model : Model
        texts : list of (str or sequence of int)
        contexts : list of (str or sequence of int), optional
            What each text comes after; it counts for nothing itself. Without one, the first token of a text (that with
            which texts begin, if the tokenizer adds one) is what the others come after.
        batch_size : int, optional
            Texts that are run together.
        progress : callable, optional
            Called as ``progress(done, total)``, in texts.
        top_logprobs : int, optional
            How many most likely tokens to name in the place of each.

        Returns
        -------
        list of Score
            Of each text as if it were alone, bit for bit.

        Raises
        ------
        InferenceError
            If a text without a context has less than two tokens, or more than the context holds.
        """
        return scored(self, model, texts, contexts, batch_size, progress, top_logprobs)
