"""How text comes out of a model; import it from `bitnet.config`."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from bitnet._checks import SIZES, Config, FrozenDict, checks_names, foreign

__all__ = ["GenerationConfig"]


@checks_names
@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig(Config):
    """How tokens are chosen, and when to stop, with Transformers' names and defaults except where said.

    Parameters
    ----------
    max_new_tokens, min_new_tokens : int
        The most tokens to generate (256 is our default), and how many before anything may end the text.
    do_sample : bool
        Whether to draw the next token, or take the most likely; then a field that only drawing reads may not be set.
    temperature : float
        Logits are divided by it; above 0.
    top_k : int, optional
        Draw from so many most likely tokens. 0 and None draw from all, and are stored as None.
    top_p : float
        Draw from the most likely tokens that together have this probability; above 0, and 1 for all.
    min_p : float, optional
        Draw from the tokens at least so likely, as a share of the most likely one. 0 and None as for `top_k`.
    typical_p : float
        Draw from the tokens whose surprise is closest to what is expected, that together have this probability; above
        0, and 1 for all.
    repetition_penalty : float
        Divides positive logits of tokens that occurred, and multiplies negative ones; above 0, and 1 for none.
    frequency_penalty, presence_penalty : float
        Are subtracted from the logit of a token for each time, and once if, the answer has it; -2 to 2, and 0 for none.
    no_repeat_ngram_size : int
        So many tokens in a row come only once, the prompt included; 0 for no such rule.
    logit_bias : dict of int to float, optional
        What is added to the logits of tokens; stored as pairs.
    eos_token_id : int or list of int, optional
        Tokens that end the text; None for those of the model, an empty list for none.
    stop_strings : str or list of str, optional
        Strings that end the text when they appear in it.
    prompt_lookup_num_tokens : int, optional
        Guess the next tokens, at most so many, from what the text has said before, and check them in one step, while
        that is measured to be faster. The answer is the same, bit for bit; much faster where it repeats its prompt, as
        in edits and summaries. 0 and None guess nothing.
    num_return_sequences : int
        How many answers to draw to a prompt; the second has the next seed, and so on.
    logprobs : int, optional
        For each token of the answer also give the logarithm of its probability, by the model's own logits, and those
        of so many most likely ones. None for neither.
    seed : int, optional
        Seed of the drawing, 0 to ``2**64 - 1``; None for a fresh one each time. Ours: Transformers' seed is global.
    """

    FOREIGN_NAMES: ClassVar[Mapping[str, str]] = foreign(
        max_new_tokens="max_tokens n_predict num_predict max_length max_completion_tokens", min_new_tokens="min_tokens",
        do_sample="sample sampling greedy", temperature="temp", top_k="topk", top_p="topp nucleus", min_p="minp",
        typical_p="typical typ_p", frequency_penalty="freq_penalty", no_repeat_ngram_size="ngram_size",
        num_return_sequences="n best_of num_completions", logprobs="top_logprobs n_probs num_logprobs",
        logit_bias="bias", prompt_lookup_num_tokens="prompt_lookup lookup_num_tokens num_speculative_tokens",
        repetition_penalty="repeat_penalty", seed="random_seed rng_seed manual_seed",
        eos_token_id="eos eos_id eos_token_ids stop_token_ids", stop_strings="stop stop_words stop_sequences",
    )  # fmt: skip

    # The fields that only drawing reads, with the value by which each changes nothing.
    NEUTRAL: ClassVar[Mapping[str, Any]] = FrozenDict({
        "temperature": 1.0, "top_k": None, "top_p": 1.0, "min_p": None, "typical_p": 1.0, "num_return_sequences": 1,
    })  # fmt: skip

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]] | None = None
    eos_token_id: int | Iterable[int] | None = None
    stop_strings: str | Iterable[str] | None = None
    prompt_lookup_num_tokens: int | None = None
    num_return_sequences: int = 1
    logprobs: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        self._whole("max_new_tokens", SIZES)
        self._whole("min_new_tokens", range(SIZES.stop))
        self._flag("do_sample")
        self._real("temperature", "a finite number above 0 (do_sample=False draws nothing)", lambda number: number > 0)
        self._whole("top_k", range(SIZES.stop), or_none=True)
        for name in ("top_p", "typical_p"):
            self._real(name, "above 0 and at most 1", lambda number: 0 < number <= 1)
        if self.min_p is not None:
            self._real("min_p", "from 0 to 1, or None", lambda number: 0 <= number <= 1)
        for name in ("top_k", "min_p"):
            self._set(name, getattr(self, name) or None)
        self._real("repetition_penalty", "a finite number above 0", lambda number: number > 0)
        for name in ("frequency_penalty", "presence_penalty"):
            self._real(name, "from -2 to 2", lambda number: -2 <= number <= 2)
        self._whole("no_repeat_ngram_size", range(SIZES.stop))
        self._pairs("logit_bias", range(SIZES.stop))
        self._whole("prompt_lookup_num_tokens", range(65), or_none=True)
        self._set("prompt_lookup_num_tokens", self.prompt_lookup_num_tokens or None)
        self._whole("num_return_sequences", range(1, 1025))
        self._whole("logprobs", range(1025), or_none=True)
        self._token_ids("eos_token_id", range(SIZES.stop), none=None)
        self._strings("stop_strings", "a string or a list of strings, none of them empty")
        self._whole("seed", range(2**64), or_none=True)
        if self.min_new_tokens > self.max_new_tokens:
            raise self._conflict(f"min_new_tokens is {self.min_new_tokens}, max_new_tokens only {self.max_new_tokens}")
        for name, neutral in () if self.do_sample else self.NEUTRAL.items():
            if (value := getattr(self, name)) not in (neutral, getattr(type(self), name)):
                raise self._conflict(f"{name} is {value!r}, which is of use only with do_sample=True")

    @classmethod
    def from_hugging_face(cls, d: Mapping[str, Any]) -> Self:
        """Read the dictionary of a ``generation_config.json``: a model's own defaults.

        Of such a file only what chooses tokens is read, and `max_new_tokens`. ``eos_token_id`` is the model's to know,
        and what only drawing reads counts for nothing where the file does not draw, as in Transformers.

        Parameters
        ----------
        d : mapping
            The file's content. A null says what a missing key says.

        Returns
        -------
        GenerationConfig

        Raises
        ------
        ConfigurationError
            If a value cannot be used.
        """
        names = ("max_new_tokens", "min_new_tokens", "do_sample", *cls.NEUTRAL, "repetition_penalty",
                 "no_repeat_ngram_size")
        fields = {name: d[name] for name in names if d.get(name) is not None}
        if not fields.get("do_sample", False):
            fields = {name: value for name, value in fields.items() if name not in cls.NEUTRAL}
        return cls(**fields)

    def replace(self, **changes: Any) -> Self:
        """Make a changed copy. Turning `do_sample` off resets what only drawing reads, unless `changes` names it."""
        if self.do_sample and not changes.get("do_sample", True):
            changes = {**{name: getattr(type(self), name) for name in self.NEUTRAL}, **changes}
        return super().replace(**changes)
