"""A loaded model: its configuration, its program, and the weights that the program is bound to.

Here formats and model families meet: `load` reads a checkpoint's tensors as a family's program asks for them.
"""

import contextlib
import logging
import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from bitnet._core import packing, quant
from bitnet._core.builder import Builder, TableInFile
from bitnet._core.head import Int8Rows, rows_of_bytes
from bitnet._core.memory import new_block
from bitnet._core.program import Program
from bitnet.chat import compiled
from bitnet.checksums import Checksums
from bitnet.config import EngineConfig, GenerationConfig
from bitnet.errors import ConfigurationError, FormatError, InferenceError, ModelLoadError
from bitnet.formats import open_checkpoint
from bitnet.formats.panels import HEAD
from bitnet.formats.random import RandomCheckpoint
from bitnet.hub import local_path
from bitnet.memory import give_back_unused, note_mapped
from bitnet.models import family
from bitnet.tokenizer import Tokenizer
from bitnet.tuning import choose_packing

__all__ = ["Model", "load_model", "random_model"]

_log = logging.getLogger(__name__)

FLOAT_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # of files, to the core's names
SOME_ROWS = 512  # made of floats at once: they are memory beside the model


class Model:
    """A model, ready to run. Immutable; may be shared between engines and threads.

    Attributes
    ----------
    path : str
        The checkpoint it came from.
    config : ModelConfig
    program : Program
    engine_config : EngineConfig
        With which it was loaded: how its cache and its head are stored.
    weight_bytes : int
        Bytes of packed ternary weights.
    pooling : {"last", "mean", "cls"}
        How the vectors of a text's tokens become that of the text.
    generation_config : GenerationConfig
        How the checkpoint wants to be used: the defaults of `generate` and `stream`.
    """

    def __init__(self, path, config, program, engine_config, checkpoint, weight_bytes, checksums=None):
        self._checksums = checksums
        self.path, self.config, self.program = path, config, program
        self.engine_config, self.weight_bytes = engine_config, weight_bytes
        self.generation_config = _generation_config(checkpoint)
        self._ends = checkpoint.generation_config.get("eos_token_id")
        self.tokenizer = _tokenizer(checkpoint, config)
        self.chat_template = checkpoint.chat_template
        self._marks = [_mark(checkpoint, self.tokenizer, role) for role in ("bos", "eos")]
        self.pooling = checkpoint.pooling or "last"

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text: those of the generation configuration, and of the configuration."""
        named = [] if self._ends is None else [self._ends] if isinstance(self._ends, int) else list(self._ends)
        return tuple(dict.fromkeys([*named, *(self.config.eos_token_id or ())]))

    def verify(self) -> int:
        """Look whether a bit has flipped since the model was loaded, in memory or in the checkpoint's files.

        Returns
        -------
        int
            How many checksums were compared.

        Raises
        ------
        ModelLoadError
            If a tensor has changed, which it names; or if the model was not loaded with ``verify="load"``.
        """
        return self._known_checksums().verify()

    def save_checksums(self) -> str:
        """Write checksums of the checkpoint's tensors beside it; from then on loading with ``verify="load"`` compares.

        Returns
        -------
        str
            The path of what was written.

        Raises
        ------
        ModelLoadError
            If the model was not loaded with ``verify="load"``.
        """
        return self._known_checksums().save()

    def _known_checksums(self):
        if self._checksums is None:
            raise ModelLoadError.no_checksums(self.path)
        return self._checksums

    def encode(self, prompt: Any) -> Any:
        """Make token ids of a prompt.

        Parameters
        ----------
        prompt : str or sequence of int

        Returns
        -------
        ndarray of int32, shape (tokens,)
        """
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ModelLoadError.no_tokenizer(self.path)
            prompt = self.tokenizer.encode(prompt)
        try:
            ids = np.asarray(prompt)
        except ValueError:  # a list of lists of different lengths
            raise InferenceError.tokens(prompt) from None
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise InferenceError.tokens(prompt)
        return ids.astype(np.int64).clip(-1, 2**31 - 1).astype(np.int32)

    def chat_prompt(
        self, messages: Any, *, tools: Any = None, template: str | None = None, add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Write a conversation with the checkpoint's template.

        Parameters
        ----------
        messages : list of dict
            As of `bitnet.chat.ChatTemplate.render`.
        tools : list of dict, optional
            JSON schemas of functions that the model may ask for; templates that know no tools leave them out.
        template : str, optional
            A source in Jinja to use instead, or a name in `bitnet.chat.TEMPLATES`: "plain" for models that were not
            trained to chat.
        add_generation_prompt : bool, optional
            Whether to write the beginning of the answer.
        **variables
            What else the template may ask for, as ``enable_thinking``.

        Returns
        -------
        str

        Raises
        ------
        ModelLoadError
            If the checkpoint has no template.
        FormatError
            If the template fails, or goes beyond its bounds.
        """
        template = self.chat_template if template is None else template
        if template is None:
            raise ModelLoadError.no_chat_template(self.path)
        variables |= {} if tools is None else {"tools": tools}
        return compiled(template, *self._marks).render(messages, add_generation_prompt, **variables)

    def __repr__(self):
        return (
            f"Model('{self.path}', {self.config.model_type}, {self.config.num_hidden_layers} layers, "
            f"{self.weight_bytes / 1e6:,.1f} MB of ternary weights)"
        )


def _generation_config(checkpoint):
    try:
        return GenerationConfig.from_hugging_face(checkpoint.generation_config)
    except ConfigurationError as error:
        raise ModelLoadError.generation_config(checkpoint.path, str(error)) from error


def _tokenizer(checkpoint, config):
    if checkpoint.tokenizer_path is None:
        return None
    if checkpoint.format == "gguf":
        try:
            return Tokenizer.from_metadata(checkpoint.metadata, checkpoint.tokenizer_path,
                                           eos_token_ids=config.eos_token_id or ())  # fmt: skip
        except FormatError as error:  # a vocabulary that nobody can use is no reason not to run on token ids
            checkpoint.notes.append(f"without a tokenizer: {error}")
            return None
    return Tokenizer.from_file(
        checkpoint.tokenizer_path, bos_token_id=config.bos_token_id,
        add_bos=checkpoint.tokenizer_config.get("add_bos_token"), eos_token_ids=config.eos_token_id or (),
    )  # fmt: skip


def _mark(checkpoint, tokenizer, role):
    """What a chat template finds as ``bos_token`` or ``eos_token``."""
    said = checkpoint.tokenizer_config
    if f"{role}_token" in said:
        token = said[f"{role}_token"]
        token = token.get("content") if isinstance(token, Mapping) else token
        return token if isinstance(token, str) else ""
    ids = () if tokenizer is None else tokenizer.eos_token_ids if role == "eos" else [tokenizer.bos_token_id]
    return "".join(tokenizer.decode([id], skip_special_tokens=False) for id in ids[:1] if id is not None)


def packing_of(config, engine_config):
    """Choose the packing of a model's weights: a step reads all of them, so their sum counts.

    Parameters
    ----------
    config : ModelConfig
    engine_config : EngineConfig

    Returns
    -------
    str
    """
    if engine_config.packing != "auto":
        return engine_config.packing
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    rows = config.num_hidden_layers * (heads * config.head_dim + 3 * config.intermediate_size)
    return choose_packing((rows, config.hidden_size), None, engine_config.num_threads)


class _Weights:
    """A checkpoint's numbers, as a `Builder` asks for them."""

    def __init__(self, checkpoint, config, engine_config, progress):
        self.checkpoint, self.config, self.engine_config = checkpoint, config, engine_config
        self.weight_bytes = 0
        wanted = engine_config.activations
        self.activations = checkpoint.activations if wanted == "auto" else wanted
        # The kernels that take floats as they are know one packing.
        self.packing = "i2" if self.activations == "float32" else packing_of(config, engine_config)
        self._progress = progress or (lambda done, total, name: None)
        self._done, self._total = 0, sum(checkpoint.info(name).nbytes for name in checkpoint.names())
        self._table = None

    def _tell(self, name):
        self._done += self.checkpoint.info(name).nbytes if name in self.checkpoint else 0
        self.checkpoint.let_go()  # of the tensor before: it is packed, and need not count twice
        self._progress(self._done, self._total, name)

    def finish(self):
        """Tell that all is read, small tensors beside weights included, and what stays in the file."""
        self._progress(self._total, self._total, "")

    def floats(self, name):
        self._tell(name)
        return self.checkpoint.floats(name)

    def own_norm(self, name):
        stored = self.config.extra.get("quantization_config") or {}
        if f"{name}.norm.weight" in self.checkpoint:  # of BitNet-embedding
            return self.checkpoint.floats(f"{name}.norm.weight"), self.config.rms_norm_eps
        gain = f"{name}.rms_norm.weight"
        if gain not in self.checkpoint and not stored.get("use_rms_norm", False):
            return None
        return self.checkpoint.floats(gain), float(stored.get("rms_norm_eps", 1e-6))

    def dense(self, name):
        weight = f"{name}.weight"
        if self.engine_config.weights != "float":
            return None
        info = self.checkpoint.info(weight)
        if info.dtype not in ("F64", *FLOAT_TYPES) and self.checkpoint.is_quantized(name):
            return None
        self._tell(weight)
        dtype = FLOAT_TYPES.get(info.dtype, "float32")  # also of quantised types that are not ternary
        table = self._table_of(weight, self.checkpoint.matrix_shape(name), dtype, f"the weight '{name}'", "weights")
        return table, dtype

    def _table_of(self, name, shape, dtype, what, tag):
        """The rows of a tensor of floats as numbers of a type, in the core's memory."""
        stored = np.dtype({"float16": "f2", "bfloat16": "u2", "float32": "f4"}[dtype])
        block = new_block(shape[0] * shape[1] * stored.itemsize, what, tag)
        table = np.frombuffer(block, stored).reshape(shape)
        for start, rows in self._some_rows(name, shape[0]):
            if dtype == "bfloat16":
                bits = rows.view(np.uint32)
                rows = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
            table[start : start + SOME_ROWS] = rows
        return table.view(np.uint16) if dtype == "float16" else table

    def _some_rows(self, name, count):
        for start in range(0, count, SOME_ROWS):
            rows = self.checkpoint.floats(name, slice(start, min(start + SOME_ROWS, count)))
            self.checkpoint.let_go()
            yield start, rows

    def packed(self, name):
        self._tell(f"{name}.weight")
        stored, threads = self.checkpoint.ternary(name), self.engine_config.num_threads
        if stored.kind == "packed":
            weight = packing.pack_hugging_face_bytes(stored.data, stored.scale, self.packing, threads)
        elif stored.kind == "codes":
            kind = self.packing if stored.group_size is None else "i2"  # whose tiles groups of columns consist of
            weight = packing.pack_codes(stored.codes(), stored.scale, kind, stored.group_size, threads)
        elif stored.kind == "panels" and (stored.packing == "i2" or self.activations == "int8"):
            data = self._where_it_stays(stored.data, "a weight", "weights")
            weight = packing.view_packed_bytes(data, stored.rows, stored.cols, stored.scale, stored.packing,
                                               stored.group_size)  # fmt: skip
        elif stored.kind == "panels":
            weight = packing.from_packed_bytes(stored.data, stored.rows, stored.cols, stored.scale, stored.packing)
            weight = packing.pack_codes(weight.unpack(), stored.scale, "i2", None, threads)
        else:
            masters = stored.floats()
            s = quant.reciprocal_scales(masters, num_threads=threads)
            weight = packing.pack_numbers(masters, s, self.packing, None, threads)
        self.weight_bytes += weight.nbytes
        return weight

    def _where_it_stays(self, data, what, tag):
        """Bytes of a mapping, or a copy of them in the core's memory, for its huge pages."""
        if self.engine_config.load == "mmap":
            note_mapped(data, tag)
            return data
        copy = np.frombuffer(new_block(data.nbytes, what, tag), np.uint8)
        copy[:] = data
        return copy

    def embedding(self, name):
        self._table = f"{name}.weight"
        info = self.checkpoint.info(self._table)
        dtype = FLOAT_TYPES.get(info.dtype)
        if dtype is None:
            return self.checkpoint.floats(self._table), "float32"
        file, offset = self.checkpoint.place(self._table)
        return TableInFile(file, offset, info.shape, dtype), dtype

    def head(self, name):
        source = self._table if self.config.tie_word_embeddings else f"{name}.weight"
        self._tell(source)
        wanted = self.engine_config.head_dtype
        shape = self.checkpoint.info(source).shape
        if len(shape) != 2:
            raise ModelLoadError.shape(source, (self.config.vocab_size, self.config.hidden_size), shape)
        if wanted != "int8":
            return self._table_of(source, shape, wanted, "the head", "head"), wanted
        if HEAD in self.checkpoint:  # as kernels read it
            data = self._where_it_stays(self.checkpoint.raw(HEAD), "the head", "head")
            return rows_of_bytes(data, *shape, self.checkpoint.floats(f"{HEAD}_scale")), wanted
        # In the core's memory, for its huge pages: a step reads all of it.
        stored = Int8Rows(*shape)
        for start, rows in self._some_rows(source, shape[0]):
            stored.fill(start, *quant.quantize_activations(rows, num_threads=self.engine_config.num_threads))
        return stored, wanted


def load_model(path: Any, engine_config: EngineConfig | None = None, progress: Any = None) -> Model:
    """Load a checkpoint.

    Parameters
    ----------
    path : str
        A Hugging Face folder, a GGUF file, or an id of the Hugging Face Hub.
    engine_config : EngineConfig, optional
    progress : callable, optional
        Called as ``progress(done_bytes, total_bytes, name)`` with each tensor that was read.

    Returns
    -------
    Model

    Raises
    ------
    FormatError, ModelLoadError
        If it is damaged, or no model that is known.
    """
    engine_config = engine_config or EngineConfig()
    return _loaded(open_checkpoint(local_path(path), engine_config.i2s_layout), engine_config, progress)


def random_model(shape: str, engine_config: EngineConfig | None = None, progress: Any = None) -> Model:
    """Make a model of random weights in the exact shape of a real one, to measure it.

    Parameters
    ----------
    shape : {"2b4t", "0.7b", "3b", "8b"}
        BitNet-b1.58-2B-4T, bitnet_b1_58-large and -3B, Llama3-8B-1.58.
    engine_config : EngineConfig, optional
    progress : callable, optional
        As of `load_model`.

    Returns
    -------
    Model
        Without a tokenizer.

    Raises
    ------
    ConfigurationError
        If there is no such shape.
    """
    return _loaded(RandomCheckpoint(shape), engine_config or EngineConfig(), progress)


def _refuse_what_is_not_computed(checkpoint, config):
    """A checkpoint that asks for another function must not be run as this one."""
    path = checkpoint.path
    for name in ("attention_bias", "mlp_bias"):
        if getattr(config, name):
            raise ModelLoadError.unsupported(path, name, True, "false: no projection here adds a bias")
    for name in ("rope_scaling", "rope_parameters"):
        scaling = config.extra.get(name) or {}
        kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, Mapping) else scaling
        if kind != "default":
            raise ModelLoadError.unsupported(path, name, kind, "absent or of the type 'default'")
    stored = config.extra.get("quantization_config") or {}
    if not isinstance(stored, Mapping):
        raise ModelLoadError.unsupported(path, "quantization_config", stored, "an object")
    eps = stored.get("rms_norm_eps", 1e-6)
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 < eps < 1:
        raise ModelLoadError.unsupported(path, "quantization_config.rms_norm_eps", eps, "a number between 0 and 1")
    if not config.tie_word_embeddings and "lm_head.weight" not in checkpoint:
        raise ModelLoadError.missing_tensor(path, "lm_head.weight")


def _loaded(checkpoint, engine_config, progress):
    began = time.perf_counter()
    with contextlib.ExitStack() as on_error:
        on_error.callback(checkpoint.close)
        module = family(checkpoint.config, checkpoint.path)
        config = module.config(checkpoint.config)
        has_head = "lm_head.weight" in checkpoint
        if not has_head and not config.tie_word_embeddings and getattr(module, "TIES_WITHOUT_HEAD", False):
            config = config.replace(tie_word_embeddings=True)
        if engine_config.hidden_act != "auto":
            config = config.replace(hidden_act=engine_config.hidden_act)
        _refuse_what_is_not_computed(checkpoint, config)
        weights = _Weights(checkpoint, config, engine_config, progress)
        builder = Builder(weights, config)
        module.build(builder, config)
        program = Program(builder, engine_config.kv_dtype)
        weights.finish()
        checksums = Checksums(checkpoint, program) if engine_config.verify else None
        model = Model(checkpoint.path, config, program, engine_config, checkpoint, weights.weight_bytes, checksums)
        on_error.pop_all()
    _log.debug("%s (%s) is loaded in %.3f s: packing '%s', activations %s, head %s, cache %s, load '%s', checked: %s",
               model, checkpoint.format, time.perf_counter() - began, weights.packing, weights.activations,
               engine_config.head_dtype, engine_config.kv_dtype, engine_config.load, checksums is not None)  # fmt: skip
    give_back_unused()  # what loading took for a moment would count beside what running takes
    for note in checkpoint.notes:
        warnings.warn(f"'{checkpoint.path}': {note}", stacklevel=2)
    return model
