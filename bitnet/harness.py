"""An adapter for EleutherAI's lm-evaluation-harness, the library `lm_eval` (extra `eval`).

::

    lm_eval --model bitnet --model_args path=CHECKPOINT --tasks TASKS
    python -m bitnet.harness --model bitnet --model_args path=CHECKPOINT --tasks TASKS

Both are the harness's own command line. The first needs a release that looks for models in other distributions, which
0.4.13 and those before it do not; the second registers the model first, and works with any. ``model_args`` are the
checkpoint (``path``, or ``pretrained`` as other models have it; none is the model that comes with the package),
``max_length``, and all fields of `EngineConfig`. What is measured is what the runtime computes: with its defaults keys
and values are float16 and the head int8; ``kv_dtype=float32,head_dtype=float32`` is closer to Transformers in float32.
"""

import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from bitnet.config import EngineConfig, GenerationConfig
from bitnet.engine import InferenceEngine
from bitnet.errors import ConfigurationError
from bitnet.scoring import score_pairs

__all__ = ["BitNetLM", "Requests", "main"]  # noqa: F822 - made when it is asked for

MAX_GEN_TOKS = 256  # where a task does not say, as of the harness's own models
AUTO_BATCH = 32


class Requests:
    """What the harness asks of a model. `BitNetLM` is this and the harness's own base class.

    Parameters
    ----------
    path, pretrained : str, optional
        The checkpoint, under either name; by default the model that comes with the package.
    batch_size : int or str, optional
        Contexts that are run together; "auto" is 32.
    max_length : int, optional
        Tokens of context at most; by default the model's.
    device : str, optional
        "cpu", which is all there is. "cuda:0" is what the command line says where nobody does, and counts for nothing.
    **settings
        Of `EngineConfig`.
    """

    backend = "causal"
    tokenizer = None  # so that the harness asks `chat_template` and `apply_chat_template` here

    def __init__(
        self, path: str | None = None, pretrained: str | None = None, batch_size: int | str | None = 1,
        max_length: int | None = None, device: str | None = None, max_batch_size: int | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        if path is not None and pretrained is not None:
            raise ConfigurationError.conflict("model_args", "path and pretrained are the same; give one of them")
        if device not in (None, "cpu", "cuda:0"):
            raise ConfigurationError.choice("device", device, ("cpu",))
        self._batch = AUTO_BATCH if str(batch_size).startswith("auto") else int(batch_size or 1)
        self.batch_size = self._batch
        self._engine = InferenceEngine(EngineConfig(**settings))
        self.model: Any = self._engine.load_model(path if path is not None else pretrained)
        limit = self.model.program.context
        if max_length is not None and not 1 < int(max_length) <= limit:
            raise ConfigurationError.value("model_args", "max_length", max_length, f"from 2 to {limit}, the context")
        self.max_length = int(max_length or limit)
        self.max_gen_toks = MAX_GEN_TOKS

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.model.eos_token_ids[0])

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without a context."""
        first = self.model.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        """By which the harness tells its caches apart."""
        return str(self.model.path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Make token ids of a text, with what belongs around it unless `add_special_tokens` is False."""
        ids: list[int] = self.model.tokenizer.encode(string, add_special_tokens is not False)
        return ids

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, which the harness stores with the results."""
        return self.model.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Write a conversation as a prompt; without `add_generation_prompt` up to where its last message goes on."""
        text: str = self.model.chat_prompt(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)] if last and last in text else text

    def get_model_info(self) -> dict[str, Any]:
        """What the harness stores about the model with the results."""
        config = self.model.engine_config
        return {"model_path": str(self.model.path), "model_type": self.model.config.model_type,
                "kv_dtype": config.kv_dtype, "head_dtype": config.head_dtype}  # fmt: skip

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_how: Any
    ) -> list[tuple[float, bool]]:
        """Score tokens after others; what is too long loses its beginning, as in the harness's own models."""
        pairs = []
        for _, context, ids in requests:
            kept = [*context, *ids][-(self.max_length + 1) :]
            at = max(len(kept) - len(ids), 1)
            pairs.append((np.array(kept[:at], np.int32), np.array(kept[at:], np.int32)))
        with _bar(len(pairs), "loglikelihood", disable_tqdm) as show:
            scores = score_pairs(self._engine, self.model, pairs, self._batch, show)
        answers = [(score.total, score.is_greedy) for score in scores]
        for (key, _, _), answer in zip(requests, answers, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)  # type: ignore[attr-defined]
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts, of any length, in windows: each token after as many as the context holds, in the last
        window, and otherwise after those of its window, as in the harness's own models."""
        utils = importlib.import_module("lm_eval.utils")
        windows: list[tuple[Any, list[int], list[int]]] = []
        counts = []
        for (text,) in (request.args for request in requests):
            rolling = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length,
                context_len=1,
            )  # fmt: skip
            own = [utils.make_disjoint_window(one) for one in rolling]
            windows += [(None, *one) for one in own]
            counts.append(len(own))
        answers = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        totals = [sum(next(answers)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)  # type: ignore[attr-defined]
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Go on from contexts, each until one of its strings, or the model's end, or so many tokens."""
        prompts, configs, answers = [], [], list[str]()
        for context, given in (request.args for request in requests):
            config = self._generation_config(given)
            room = self.max_length - config.max_new_tokens
            if room < 1:
                raise ConfigurationError.value("generate_until", "max_gen_toks", config.max_new_tokens,
                                               f"below {self.max_length}, the context")  # fmt: skip
            prompts.append(self.tok_encode(context)[-room:])
            configs.append(config)
        with _bar(len(requests), "generate_until", disable_tqdm) as show:
            for start in range(0, len(requests), self._batch):
                part = slice(start, start + self._batch)
                found = self._engine.generate(self.model, prompts[part], configs[part])
                for request, done in zip(requests[part], found, strict=True):
                    if done.error is not None:
                        raise done.error
                    answers.append(done.text)
                    self.cache_hook.add_partial("generate_until", request.args, done.text)  # type: ignore[attr-defined]
                show(len(answers), len(requests))
        return answers

    def _generation_config(self, given: dict[str, Any]) -> GenerationConfig:
        utils = importlib.import_module("lm_eval.models.utils")
        fields = dict(utils.normalize_gen_kwargs(given, self.max_gen_toks))
        fields["max_new_tokens"] = fields.pop("max_gen_toks")
        fields["stop_strings"] = [one for one in fields.pop("until") if one] or None
        if not fields["do_sample"]:
            fields = {name: value for name, value in fields.items() if name not in GenerationConfig.NEUTRAL}
        config: GenerationConfig = self.model.generation_config.replace(**fields)
        return config


class _bar:  # noqa: N801 - it is called as a function
    """The harness's kind of progress bar, in the form of our callbacks."""

    def __init__(self, total: int, what: str, is_off: bool) -> None:
        tqdm: Any = importlib.import_module("tqdm").tqdm
        self._bar = tqdm(total=total, desc=f"Running {what} requests", disable=is_off)

    def __enter__(self) -> Callable[[int, int], object]:
        return lambda done, total: self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _registered() -> Any:
    """The class that the harness takes, under its name there."""
    try:
        base = importlib.import_module("lm_eval.api.model").TemplateLM
    except ImportError as error:
        raise ConfigurationError.missing_library("lm_eval", "eval", "the adapter is for the harness") from error
    registry = importlib.import_module("lm_eval.api.registry")
    importlib.import_module("lm_eval.models")
    made = type("BitNetLM", (Requests, base), {"__module__": __name__, "__doc__": Requests.__doc__})
    if "bitnet" not in registry.MODEL_REGISTRY:
        registry.register_model("bitnet")(made)
    return made


def __getattr__(name: str) -> Any:
    if name != "BitNetLM":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    globals()[name] = _registered()
    return globals()[name]


def main(arguments: Iterable[str] | None = None) -> None:
    """Run the harness's command line, which then knows the model "bitnet".

    Parameters
    ----------
    arguments : iterable of str, optional
        By default those of this process.
    """
    __getattr__("BitNetLM")
    if arguments is not None:
        sys.argv = ["lm_eval", *arguments]
    importlib.import_module("lm_eval.__main__").cli_evaluate()


if __name__ == "__main__":
    main()
