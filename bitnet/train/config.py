"""What a training run is made of: `TrainConfig`, from a TOML file, from flags, or both. It needs no PyTorch."""

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from bitnet._checks import Config, checks_names, foreign
from bitnet.config import ModelConfig
from bitnet.errors import TrainingError

__all__ = ["TrainConfig"]

ACTIVATIONS = ("int8", "none")
DTYPES = ("auto", "float32", "bfloat16")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("wsd", "two_stage", "cosine")


@checks_names
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """A training run. Every field can stand in a TOML file, and is a flag of ``bitnet train``.

    Parameters
    ----------
    data : list of str
        Text files to train on, their documents separated by lines ``<|endoftext|>``.
    validation : str, optional
        A text file to measure on; it is never trained on.
    output : str
        The folder of the run: checkpoints, log, tokenizer.
    mixed_data : list of str
        Text files that are mixed in until the second stage begins.
    mixed_share : float
        The share of `mixed_data` in the rows of a step, 0 to 1.
    tokenizer : str, optional
        A ``tokenizer.json`` to use; by default one is trained on `data` and `mixed_data`.
    vocab_size : int
        Tokens of a tokenizer that is trained, 257 or more.
    hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads : int
        The model's sizes, as of `ModelConfig`.
    context : int
        The longest text the model is made for, in tokens.
    row_tokens : int, optional
        Tokens in a row of a batch; `context` by default.
    rope_theta, rms_norm_eps : float
        As of `ModelConfig`.
    activations : {"int8", "none"}
        Whether inputs of ternary layers are quantised; "none" is W1.58A16, which the runtime does not compute.
    input_norm : bool
        A norm of its own in front of each ternary layer.
    ternary : bool
        False trains an ordinary model of the same shape in full precision: a teacher, for example.
    quantize_over : int
        Steps in which the function goes from full precision to quantised; 0 begins quantised.
    start_from : str, optional
        A checkpoint or a folder in the Hugging Face format, whose weights training begins with.
    lora_rank : int
        Above 0, the ternary weights stay as they are, and adapters of this rank are trained on them.
    lora_alpha : float
        The adapters' factor is ``lora_alpha / lora_rank``.
    teacher : str, optional
        A checkpoint of a model with the same tokenizer, whose predictions are learnt too.
    distill_weight : float
        The teacher's share of the loss, 0 to 1.
    distill_temperature : float
        Both models' logits are divided by it to compare them.
    dropout : float
        The share of the embedding, and of what each sub-layer adds, that is left out while training.
    rows : int
        Rows in a batch.
    accumulate : int
        Batches whose gradients make one step.
    steps : int, optional
        Steps of the whole training; by default 1000, or what `minutes` allow.
    minutes : float, optional
        A budget of time: the schedule ends after so many minutes if `steps` have not ended it before. Time in which
        the process was stopped is not counted.
    optimizer : {"adamw", "muon"}
        Muon trains the ternary weights only, AdamW the rest.
    learning_rate : float
        AdamW's peak.
    matrix_learning_rate : float
        Muon's peak.
    betas : list of float
        AdamW's two.
    weight_decay : float
        Of the ternary weights, in the first stage; the second has none.
    clip : float
        The greatest norm of a gradient; 0 for any.
    schedule : {"wsd", "two_stage", "cosine"}
        Constant, then falling to 0; two falling stages, the second from a lower peak; half a cosine.
    warmup : int
        Steps in which the rate rises to its peak.
    decay_share : float
        The second stage's share of the training, 0 to 1.
    seed : int
        Of weights, order and dropout.
    device : str
        "auto", "cpu" or "cuda"; auto takes CUDA where there is any.
    dtype : {"auto", "float32", "bfloat16"}
        Of the products; auto takes bfloat16 where the device multiplies it.
    compile : bool
        Whether to use ``torch.compile``, which takes a minute at the start, and is faster from then on.
    threads : int, optional
        Of PyTorch; its own choice by default.
    evaluate_every, checkpoint_every : int
        Steps from one to the next.
    patience : int
        Evaluations that bring nothing better, after which training ends; 0 for no such end.
    prompts : list of str
        Texts that the model continues at each evaluation.
    """

    FOREIGN_NAMES: ClassVar[Mapping[str, str]] = foreign(
        data="train_data dataset train_file", validation="val eval_data validation_file", output="output_dir out",
        learning_rate="lr", matrix_learning_rate="muon_lr", steps="max_steps num_steps iters", rows="batch_size",
        accumulate="gradient_accumulation gradient_accumulation_steps", clip="grad_clip max_grad_norm",
        warmup="warmup_steps", num_hidden_layers="n_layers num_layers layers", hidden_size="dim d_model",
        num_attention_heads="n_heads heads", context="max_seq_len context_length max_position_embeddings",
        evaluate_every="eval_every eval_steps", checkpoint_every="save_every save_steps", minutes="time_budget",
    )  # fmt: skip

    data: tuple[str, ...] = ()
    validation: str | None = None
    output: str = "run"
    mixed_data: tuple[str, ...] = ()
    mixed_share: float = 0.0
    tokenizer: str | None = None
    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    context: int = 512
    row_tokens: int | None = None
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    activations: str = "int8"
    input_norm: bool = False
    ternary: bool = True
    quantize_over: int = 0
    start_from: str | None = None
    lora_rank: int = 0
    lora_alpha: float = 16.0
    teacher: str | None = None
    distill_weight: float = 0.5
    distill_temperature: float = 1.0
    dropout: float = 0.0
    rows: int = 8
    accumulate: int = 1
    steps: int | None = None
    minutes: float | None = None
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    matrix_learning_rate: float = 3e-3
    betas: tuple[float, ...] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float = 1.0
    schedule: str = "wsd"
    warmup: int = 100
    decay_share: float = 0.25
    seed: int = 1
    device: str = "auto"
    dtype: str = "auto"
    compile: bool = False
    threads: int | None = None
    evaluate_every: int = 250
    checkpoint_every: int = 250
    patience: int = 0
    prompts: tuple[str, ...] = ("Once upon a time",)

    def __post_init__(self) -> None:
        for name in ("data", "mixed_data", "prompts"):
            self._strings(name, "a string or a list of them, none of them empty")
        for name in ("validation", "tokenizer", "start_from", "teacher"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise self._refused(name, "a path, or None")
        if not isinstance(self.output, str) or not self.output:
            raise self._refused("output", "a path")
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "context", "rows", "accumulate", "evaluate_every",
                     "checkpoint_every"):  # fmt: skip
            self._whole(name, range(1, 2**31))
        self._whole("vocab_size", range(257, 2**31), "257 or more: the bytes, and the end of a text")
        for name in ("quantize_over", "lora_rank", "warmup", "patience", "seed"):
            self._whole(name, range(2**31))
        self._whole("threads", range(1, 1025), or_none=True)
        self._whole("row_tokens", range(8, self.context + 1), or_none=True)
        for name in ("rope_theta", "rms_norm_eps", "learning_rate", "matrix_learning_rate", "distill_temperature",
                     "lora_alpha"):  # fmt: skip
            self._real(name, "a finite number above 0", lambda number: number > 0)
        for name in ("weight_decay", "clip"):
            self._real(name, "a finite number, 0 or above", lambda number: number >= 0)
        for name in ("mixed_share", "decay_share", "distill_weight"):
            self._real(name, "a number from 0 to 1", lambda number: 0 <= number <= 1)
        self._real("dropout", "a number from 0 to below 1", lambda number: 0 <= number < 0.99)
        if self.minutes is not None:
            self._real("minutes", "a finite number above 0, or None", lambda number: number > 0)
        elif self.steps is None:
            self._set("steps", 1000)
        self._whole("steps", range(1, 2**31), or_none=True)
        for name in ("input_norm", "ternary", "compile"):
            self._flag(name)
        for name, known in (("activations", ACTIVATIONS), ("dtype", DTYPES), ("optimizer", OPTIMIZERS),
                            ("schedule", SCHEDULES)):  # fmt: skip
            self._choice(name, known)
        self._set("betas", tuple(self.betas) if isinstance(self.betas, list | tuple) else (self.betas,))
        if len(self.betas) != 2 or not all(isinstance(one, float) and 0 <= one < 1 for one in self.betas):
            raise self._refused("betas", "two numbers from 0 to below 1")
        if self.mixed_share and not self.mixed_data:
            raise self._conflict("mixed_share needs mixed_data")
        if self.lora_rank and not self.start_from:
            raise self._conflict("lora_rank needs start_from: adapters are trained on weights that are there")
        self.model_config(self.vocab_size)  # the sizes fit each other

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], **changes: Any) -> Self:
        """Read a TOML file.

        Parameters
        ----------
        path : str
            Paths in it are relative to the working directory.
        **changes
            Fields to set otherwise.

        Returns
        -------
        TrainConfig

        Raises
        ------
        TrainingError
            If it cannot be read.
        ConfigurationError
            If a field in it is unknown or cannot be used.
        """
        try:
            with open(path, "rb") as file:
                found = tomllib.load(file)
        except OSError as error:
            raise TrainingError.unreadable(os.fspath(path), error.strerror) from error
        except tomllib.TOMLDecodeError as error:
            raise TrainingError.unreadable(os.fspath(path), f"it is no TOML: {error}") from error
        return cls.from_dict({**found, **changes})

    def model_config(self, vocab_size: int) -> ModelConfig:
        """Make the model's configuration.

        Parameters
        ----------
        vocab_size : int

        Returns
        -------
        ModelConfig
        """
        return ModelConfig.from_hugging_face(self.hugging_face(vocab_size))

    def hugging_face(self, vocab_size: int) -> dict[str, Any]:
        """Write the model's ``config.json``, without what says how weights are stored.

        Parameters
        ----------
        vocab_size : int

        Returns
        -------
        dict
        """
        return {
            "architectures": ["BitNetForCausalLM"],
            "model_type": "bitnet",
            "vocab_size": vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "max_position_embeddings": self.context,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.rms_norm_eps,
            "hidden_act": "relu2",
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
