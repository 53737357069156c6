"""`Llama`: the shape of llama-cpp-python's class, on this engine."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from bitnet.chat import tool_format
from bitnet.compat.grammar import grammar_of
from bitnet.compat.pieces import Pieces
from bitnet.compat.responses import REASONS, Answer, chat_logprobs, completion_logprobs, usage_of
from bitnet.compat.settings import (
    HOW,
    KV_TYPES,
    POOLINGS,
    RANDOM_SEED,
    WHAT,
    chat_choice,
    check_unavailable,
    finished,
    processing,
    until_stopped,
)
from bitnet.config import EngineConfig, GenerationConfig
from bitnet.engine import InferenceEngine
from bitnet.errors import ConfigurationError, ModelLoadError
from bitnet.tokenizer import Tokenizer

__all__ = ["Llama"]

Answers = dict[str, Any]


class Llama:
    """A model with the interface of llama-cpp-python's class of this name. A context manager.

    Parameters
    ----------
    model_path : str, optional
        A GGUF file, or whatever else `bitnet.load` takes; by default the model that comes with the package.
    n_ctx : int, optional
        The most tokens of a prompt and its answer together; 0 for what the model holds.
    n_threads : int, optional
        Threads that compute together.
    seed : int, optional
        Of the drawing; 0xFFFFFFFF for a fresh one each time.
    vocab_only : bool, optional
        Whether to read the vocabulary only: then there is `tokenize`, `detokenize`, and the special tokens.
    embedding : bool, optional
        Taken as it comes: vectors may always be asked for.
    pooling_type : int, optional
        1 for the mean, 2 for the first token, 3 for the last one; -1 for what the model says.
    chat_format : str, optional
        A name in `bitnet.chat.TEMPLATES`, or a template in Jinja; by default that of the model.
    type_k, type_v : int, optional
        Of the keys and values, as numbers of ggml's types: 0 is float32, 1 float16, 8 int8. Both are the same.
    **others
        What else llama-cpp-python takes. What only says how its own kernels work (``n_gpu_layers``, ``n_batch``,
        ``flash_attn``, ``use_mmap``, ``verbose``, ...) is taken as it comes; what would change the result is refused.

    Notes
    -----
    What differs from llama-cpp-python:

    - There is no low level: no ``ctx``, ``eval``, ``sample``, ``save_state``, ``set_cache``. Prefixes are shared
      without being asked to, and many threads may use one object.
    - Penalties look at the whole of the text (``repeat_penalty``) or of the answer (``frequency_penalty``,
      ``presence_penalty``), not at the last 64 tokens. Filters work in the order of Transformers, temperature first:
      texts that are drawn differ, with the same seed too.
    - ``mirostat_mode``, ``tfs_z`` and ``suffix`` are refused.
    - ``n_ctx`` counts prompt and answer; where the model holds less, it is less.
    - Log-probabilities need no ``logits_all`` and vectors no ``embedding``. Log-probabilities of prompts (``echo``)
      come without the most likely other tokens.
    - A model without a chat template is an error unless ``chat_format`` is given; no format is guessed. ``tool_choice``
      is "auto" or "none". With tools, an answer that streams comes when it is whole, as it may be a call.
    - ``grammar`` and ``response_format`` need what the engine's grammars need (extra ``grammar``).
    - Errors are those of `bitnet`, which are ValueErrors and RuntimeErrors as well.
    """

    def __init__(
        self, model_path: str | os.PathLike[str] | None = None, *, n_ctx: int = 512, n_threads: int | None = None,
        seed: int = RANDOM_SEED, vocab_only: bool = False, embedding: bool = False, pooling_type: int = -1,
        chat_format: str | None = None, type_k: int | None = None, type_v: int | None = None, **others: Any,
    ) -> None:  # fmt: skip
        for name, value in others.items():
            if name in WHAT and value not in WHAT[name]:
                raise ConfigurationError.value("Llama", name, value, f"{WHAT[name][0]!r}, which changes nothing")
            if name not in WHAT and name not in HOW:
                raise ConfigurationError.unknown_field("Llama", name, ("model_path", "n_ctx", *sorted(HOW)))
        if type_k not in KV_TYPES or type_v not in (None, type_k):
            raise ConfigurationError.value("Llama", "type_k, type_v", (type_k, type_v), "both 0, 1 or 8")
        if pooling_type not in POOLINGS:
            raise ConfigurationError.choice("pooling_type", pooling_type, tuple(POOLINGS))
        self._seed, self._chat_format, self._pooling = seed, chat_format, POOLINGS[pooling_type]
        self._engine = InferenceEngine(EngineConfig(num_threads=n_threads, kv_dtype=KV_TYPES[type_k]))
        self._model: Any = None
        if vocab_only and model_path is not None:
            tokenizer: Any = Tokenizer.from_pretrained(model_path)
            self.model_path, self._n_ctx = os.fspath(model_path), n_ctx
        else:
            self._model = self._engine.load_model(model_path)
            self.model_path, tokenizer = str(self._model.path), self._model.tokenizer
            limit = self._model.program.context
            self._n_ctx = min(n_ctx, limit) if n_ctx else limit
        if tokenizer is None:
            raise ModelLoadError.no_tokenizer(self.model_path)
        self._tokenizer, self._pieces = tokenizer, Pieces(tokenizer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back."""
        self._engine.close()
        self._model = None

    @property
    def model(self) -> Any:
        """The model, of `bitnet`."""
        if self._model is None:
            raise ConfigurationError.conflict("Llama", "there is no model: it was made with vocab_only=True, or closed")
        return self._model

    # ---- tokens

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Make token ids of a text in UTF-8; special tokens in it are text unless `special` says otherwise."""
        if not isinstance(text, bytes):
            raise ConfigurationError.value("Llama.tokenize", "text", text, "bytes, in UTF-8")
        return self._pieces.tokenize(text, add_bos, special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """Write the bytes of tokens, after `prev_tokens` if there are some."""
        return self._pieces.detokenize(list(tokens), not prev_tokens, special)

    def token_bos(self) -> int:
        """The token that a text begins with, or -1."""
        return -1 if self._tokenizer.bos_token_id is None else int(self._tokenizer.bos_token_id)

    def token_eos(self) -> int:
        """The token that ends a text, or -1."""
        ends = self._tokenizer.eos_token_ids if self._model is None else self._model.eos_token_ids
        return int(ends[0]) if ends else -1

    def token_nl(self) -> int:
        """The last token of a line end."""
        return ([-1, *self.tokenize(b"\n", add_bos=False)])[-1]

    def n_ctx(self) -> int:
        """The most tokens of a prompt and its answer together."""
        return int(self._n_ctx)

    def n_vocab(self) -> int:
        """The number of logits; without a model that of tokens."""
        return int(self._tokenizer.vocab_size if self._model is None else self._model.config.vocab_size)

    def n_embd(self) -> int:
        """The length of a vector."""
        return int(self.model.config.hidden_size)

    def set_seed(self, seed: int) -> None:
        """Have what is drawn from now on, without a seed of its own, drawn with this one."""
        self._seed = seed

    def reset(self) -> None:
        """Do nothing: no state is left between calls."""

    # ---- completions

    def __call__(self, prompt: str, *given: Any, **named: Any) -> Any:
        """Go on from a prompt, as `create_completion`."""
        return self.create_completion(prompt, *given, **named)

    def create_completion(
        self, prompt: str | Sequence[int], suffix: str | None = None, max_tokens: int | None = 16,
        temperature: float = 0.8, top_p: float = 0.95, min_p: float = 0.05, typical_p: float = 1.0,
        logprobs: int | None = None, echo: bool = False, stop: str | Sequence[str] | None = None,
        frequency_penalty: float = 0.0, presence_penalty: float = 0.0, repeat_penalty: float = 1.0, top_k: int = 40,
        stream: bool = False, seed: int | None = None, tfs_z: float = 1.0, mirostat_mode: int = 0,
        mirostat_tau: float = 5.0, mirostat_eta: float = 0.1, model: str | None = None, stopping_criteria: Any = None,
        logits_processor: Any = None, grammar: Any = None, logit_bias: Mapping[int, float] | None = None,
    ) -> Any:  # fmt: skip
        """Go on from a prompt.

        Parameters
        ----------
        prompt : str or list of int
        max_tokens : int, optional
            The most tokens of the answer; None or less than 1 for as many as fit.
        temperature : float, optional
            0 takes the most likely token.
        top_p, min_p, typical_p, top_k, repeat_penalty, frequency_penalty, presence_penalty, seed, logit_bias, grammar
            As of `GenerationConfig` and `InferenceEngine.stream`.
        logprobs : int, optional
            Of how many most likely tokens to give the log-probabilities, with those of the tokens of the answer.
        echo : bool, optional
            Whether the text begins with the prompt.
        stop : str or list of str, optional
            Strings that end the text.
        stream : bool, optional
            Whether to give an iterator of parts.
        model : str, optional
            A name to answer under.
        stopping_criteria, logits_processor : callable, optional
            Of the tokens so far and the logits: whether to end, and other logits.
        suffix, tfs_z, mirostat_mode, mirostat_tau, mirostat_eta
            Only as they are by default.

        Returns
        -------
        dict, or iterator of dict where `stream` is true
            As of OpenAI's text completions.
        """
        check_unavailable(suffix=(suffix, None), tfs_z=(tfs_z, 1.0), mirostat_mode=(mirostat_mode, 0))
        if isinstance(prompt, str):
            ids = self._pieces.tokenize(prompt.encode(), True, True) or [max(self.token_bos(), 0)]
            text = prompt
        else:
            ids = list(prompt)
            text = self.detokenize(ids).decode("utf-8", errors="ignore")
        sampling = {
            "temperature": temperature, "top_p": top_p, "min_p": min_p, "typical_p": typical_p, "top_k": top_k,
            "repetition_penalty": repeat_penalty, "frequency_penalty": frequency_penalty, "logprobs": logprobs,
            "presence_penalty": presence_penalty, "stop_strings": stop, "seed": seed, "logit_bias": logit_bias,
        }  # fmt: skip
        pieces = self._pieces_of(ids, max_tokens, sampling, logits_processor, stopping_criteria, grammar)
        answer = Answer("text_completion", self.model_path if model is None else model)
        if stream:
            return self._completion_chunks(answer, pieces, text if echo else "")
        done = finished(pieces)
        written = None if done.logprobs is None else self._completion_logprobs(done, ids if echo else [], len(text))
        choice = {"text": text * echo + done.text, "logprobs": written,
                  "finish_reason": REASONS.get(done.finish_reason)}  # fmt: skip
        return answer.whole(choice, usage_of(len(ids), len(done.tokens)))

    def _completion_chunks(self, answer: Answer, pieces: Any, start: str) -> Iterator[Answers]:
        if start:
            yield answer.chunk({"text": start})
        length = len(start)
        for piece in until_stopped(pieces):
            if piece.text or piece.logprob is not None:
                choice: Answers = {"text": piece.text}
                if piece.logprob is not None:
                    choice["logprobs"] = completion_logprobs([piece.token], [piece.logprob], [piece.top_logprobs],
                                                             self._text_of, length)  # fmt: skip
                length += len(piece.text)
                yield answer.chunk(choice)
        yield answer.chunk({"text": "", "finish_reason": REASONS.get(pieces.completion.finish_reason)})

    def _completion_logprobs(self, done: Any, before: list[int], start: int) -> Answers:
        logprobs: list[float | None] = list(done.logprobs)
        tops = list(done.top_logprobs or [None] * len(logprobs))
        if before:
            known: list[float | None] = [None]
            if len(before) > 1:
                known += self._engine.score(self.model, [before])[0].logprobs.tolist()
            logprobs, tops, start = known + logprobs, [None] * len(before) + tops, 0
        return completion_logprobs([*before, *done.tokens], logprobs, tops, self._text_of, start)

    def _text_of(self, token: int) -> bytes:
        return self._pieces.detokenize([token], False, True)

    def generate(self, tokens: Sequence[int], top_k: int = 40, top_p: float = 0.95, min_p: float = 0.05,
                 temp: float = 0.8, repeat_penalty: float = 1.0, **others: Any) -> Iterator[int]:  # fmt: skip
        """Go on from tokens, token by token, until the model ends the text or the context is full.

        Parameters
        ----------
        tokens : list of int
        top_k, top_p, min_p, temp, repeat_penalty
            As of `create_completion`.
        **others
            ``typical_p``, ``frequency_penalty``, ``presence_penalty``, ``logits_processor``, ``stopping_criteria`` and
            ``grammar``, as there.

        Yields
        ------
        int
        """
        rest = {name: others.pop(name, None) for name in ("logits_processor", "stopping_criteria", "grammar")}
        others.pop("reset", None)
        sampling = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "temperature": temp,
                    "repetition_penalty": repeat_penalty, **others}  # fmt: skip
        pieces = self._pieces_of(list(tokens), None, sampling, rest["logits_processor"], rest["stopping_criteria"],
                                 rest["grammar"])  # fmt: skip
        for piece in until_stopped(pieces):
            if piece.token is not None:
                yield piece.token

    def _pieces_of(
        self, ids: list[int], max_tokens: int | None, sampling: dict[str, Any], processor: Any, criteria: Any,
        grammar: Any,
    ) -> Any:  # fmt: skip
        """Begin an answer; what is asked of it, in the engine's words."""
        room = self._n_ctx - len(ids)
        if room < 1:
            raise ConfigurationError.value("Llama", "prompt", f"of {len(ids)} tokens",
                                           f"shorter than n_ctx, {self._n_ctx}")  # fmt: skip
        options: dict[str, Any] = {}
        if processor is not None or criteria is not None:
            options["logits_processor"] = processing(processor, criteria)
        if grammar is not None:
            options["grammar"] = grammar_of(grammar)
        config = self._config(min(max_tokens, room) if max_tokens and max_tokens > 0 else room, sampling)
        return self._engine.stream(self.model, ids, config, **options)

    def _config(self, most: int, sampling: dict[str, Any]) -> GenerationConfig:
        fields = {name: value for name, value in sampling.items() if value is not None}
        greedy = fields.get("temperature") == 0
        if fields.get("top_k", 1) < 1:
            fields["top_k"] = None
        if isinstance(stop := fields.get("stop_strings"), list | tuple) and not stop:
            del fields["stop_strings"]
        if "logit_bias" in fields:
            fields["logit_bias"] = {int(token): float(bias) for token, bias in fields["logit_bias"].items()}
        fields.setdefault("seed", None if self._seed in (RANDOM_SEED, -1) else self._seed)
        # What changes nothing is left out, as greedy choice has no use for what only drawing reads.
        defaults = {"typical_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
        dropped = set(GenerationConfig.NEUTRAL) if greedy else set()
        fields = {name: value for name, value in fields.items()
                  if name not in dropped and defaults.get(name, ...) != value}  # fmt: skip
        return GenerationConfig(max_new_tokens=most, do_sample=not greedy, **fields)

    # ---- conversations

    def create_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], functions: Sequence[Mapping[str, Any]] | None = None,
        function_call: Any = None, tools: Sequence[Mapping[str, Any]] | None = None, tool_choice: Any = None,
        temperature: float = 0.2, top_p: float = 0.95, top_k: int = 40, min_p: float = 0.05, typical_p: float = 1.0,
        stream: bool = False, stop: str | Sequence[str] | None = None, seed: int | None = None,
        response_format: Mapping[str, Any] | None = None, max_tokens: int | None = None,
        presence_penalty: float = 0.0, frequency_penalty: float = 0.0, repeat_penalty: float = 1.0, tfs_z: float = 1.0,
        mirostat_mode: int = 0, mirostat_tau: float = 5.0, mirostat_eta: float = 0.1, model: str | None = None,
        logits_processor: Any = None, grammar: Any = None, logit_bias: Mapping[int, float] | None = None,
        logprobs: bool | None = None, top_logprobs: int | None = None,
    ) -> Any:  # fmt: skip
        """Answer the last message of a conversation.

        Parameters
        ----------
        messages : list of dict
        functions, tools : list of dict, optional
            JSON schemas of functions that the template tells the model of; the first is the old way to say the second.
        function_call, tool_choice : optional
            "auto", or "none", which leaves them out.
        response_format : dict, optional
            ``{"type": "json_object"}``, with a ``"schema"`` if there is one; or ``{"type": "text"}``.
        logprobs : bool, optional
            Whether to give the log-probabilities of the answer's tokens.
        top_logprobs : int, optional
            Of how many most likely tokens to give them as well.
        temperature, top_p, top_k, min_p, typical_p, stream, stop, seed, max_tokens, presence_penalty
            As of `create_completion`.
        frequency_penalty, repeat_penalty, tfs_z, mirostat_mode, mirostat_tau, mirostat_eta, model, logit_bias
            As of `create_completion`.
        logits_processor, grammar
            As of `create_completion`.

        Returns
        -------
        dict, or iterator of dict where `stream` is true
            As of OpenAI's chat completions.
        """
        check_unavailable(tfs_z=(tfs_z, 1.0), mirostat_mode=(mirostat_mode, 0))
        choice = tool_choice if function_call is None else function_call
        if choice not in (None, "auto", "none"):
            raise ConfigurationError.choice("tool_choice", choice, ("auto", "none"))
        offered = [*(tools or ()), *({"type": "function", "function": one} for one in functions or ())]
        offered = [] if choice == "none" else offered
        prompt = self.model.chat_prompt(messages, tools=offered or None, template=self._chat_format)
        ids = self.model.encode(prompt).tolist()
        sampling = {
            "temperature": temperature, "top_p": top_p, "min_p": min_p, "typical_p": typical_p, "top_k": top_k,
            "repetition_penalty": repeat_penalty, "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty, "stop_strings": stop, "seed": seed, "logit_bias": logit_bias,
            "logprobs": (top_logprobs or 0) if logprobs else None,
        }  # fmt: skip
        wanted = grammar_of(grammar, response_format)
        pieces = self._pieces_of(ids, max_tokens, sampling, logits_processor, None, wanted)
        answer = Answer("chat.completion", self.model_path if model is None else model)
        form = tool_format(self.model.chat_template if self._chat_format is None else self._chat_format)
        if stream:
            return self._chat_chunks(answer, pieces, form if offered else None)
        done = finished(pieces)
        choices = chat_choice(done, form if offered else None)
        if done.logprobs is not None:
            tops = done.top_logprobs or [None] * len(done.tokens)
            choices["logprobs"] = chat_logprobs(done.tokens, done.logprobs, tops, self._text_of)
        return answer.whole(choices, usage_of(len(ids), len(done.tokens)))

    def _chat_chunks(self, answer: Answer, pieces: Any, form: str | None) -> Iterator[Answers]:
        yield answer.chunk({"delta": {"role": "assistant"}})
        if form is not None:  # what comes may be a call, which only the whole shows
            choice = chat_choice(finished(pieces), form)
            message = choice["message"]
            calls = [{"index": i, **call} for i, call in enumerate(message.get("tool_calls", ()))]
            if message["content"]:
                yield answer.chunk({"delta": {"content": message["content"]}})
            if calls:
                yield answer.chunk({"delta": {"tool_calls": calls}})
            yield answer.chunk({"delta": {}, "finish_reason": choice["finish_reason"]})
            return
        for piece in until_stopped(pieces):
            if piece.text or piece.logprob is not None:
                choice = {"delta": {"content": piece.text}}
                if piece.logprob is not None:
                    choice["logprobs"] = chat_logprobs([piece.token], [piece.logprob], [piece.top_logprobs],
                                                       self._text_of)  # fmt: skip
                yield answer.chunk(choice)
        yield answer.chunk({"delta": {}, "finish_reason": REASONS.get(pieces.completion.finish_reason)})

    # ---- vectors

    def embed(self, input: str | Sequence[str], normalize: bool = False, truncate: bool = True,
              return_count: bool = False) -> Any:  # fmt: skip
        """Make a vector of each text.

        Parameters
        ----------
        input : str or list of str
        normalize : bool, optional
            Whether each has length 1.
        truncate : bool, optional
            Whether texts longer than `n_ctx` lose their end, rather than being an error.
        return_count : bool, optional
            Whether to give the number of tokens too.

        Returns
        -------
        list of float of one text, or a list of them; or a pair of that and the number of tokens
        """
        texts = [input] if isinstance(input, str) else list(input)
        ids = [self.model.encode(text).tolist() for text in texts]
        if not truncate and (longest := max(map(len, ids), default=0)) > self._n_ctx:
            raise ConfigurationError.value("Llama.embed", "input", f"of {longest} tokens",
                                           f"at most {self._n_ctx} of them")  # fmt: skip
        ids = [one[: self._n_ctx] for one in ids]
        rows = self._engine.embed(self.model, ids, pooling=self._pooling, normalize=normalize).tolist()
        found = rows[0] if isinstance(input, str) else rows
        return (found, sum(map(len, ids))) if return_count else found

    def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> Answers:
        """Make a vector of each text, as OpenAI answers.

        Parameters
        ----------
        input : str or list of str
        model : str, optional
            A name to answer under.

        Returns
        -------
        dict
        """
        rows, count = self.embed([input] if isinstance(input, str) else input, return_count=True)
        return {
            "object": "list", "model": self.model_path if model is None else model,
            "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }  # fmt: skip
