"""The settings of `bitnet`: five frozen dataclasses, checked when they are made.

`ModelConfig` is what a checkpoint says about its architecture, `QuantizationConfig` how numbers become ternary weights,
`EngineConfig` how a model runs on this machine, `GenerationConfig` how text comes out of it, and `MemoryPoolConfig` how
a pool of its own keeps memory. All fields are keyword-only, and a name that is no field is refused with the one that
is::

    GenerationConfig(max_tokens=64)
    # ConfigurationError: GenerationConfig has no field 'max_tokens'; use 'max_new_tokens'

Whatever cannot be used raises a `ConfigurationError`, and so do fields that contradict each other. NumPy's scalars are
stored as Python's own, lists as tuples. A ``bool`` is no number here, although Python could count with it.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from bitnet._checks import SIZES, Config, FrozenDict, checks_names, foreign, frozen, is_json
from bitnet._generation_config import GenerationConfig
from bitnet.errors import ConfigurationError

__all__ = ["EngineConfig", "GenerationConfig", "MemoryPoolConfig", "ModelConfig", "QuantizationConfig"]

GenerationConfig.__module__ = __name__  # where users find it, and pickles name it

GATES = ("relu2", "silu", "gelu", "gelu_pytorch_tanh")

# Keys of a config.json that say nothing about the function the model computes here: who wrote the file, how the model
# was trained, what Transformers returns. Batches are ragged, so nothing is padded.
BOOKKEEPING = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_name_or_path", "attention_dropout", "auto_map", "dtype",
    "gradient_checkpointing", "id2label", "initializer_range", "label2id", "output_attentions", "output_hidden_states",
    "pad_token_id", "pretraining_tp", "return_dict", "torch_dtype", "transformers_version", "use_cache",
})  # fmt: skip

# What a config.json leaves out, the class of its own family knows; the families differ in these.
STATED_BY_FAMILY = ("model_type", "hidden_act", "rms_norm_eps", "rope_theta", "max_position_embeddings",
                    "tie_word_embeddings")  # fmt: skip


@checks_names
@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """The architecture of a model, in the names of a Hugging Face ``config.json``.

    The defaults are those of the family ``bitnet``. `from_hugging_face` reads a file of any family.

    Parameters
    ----------
    vocab_size : int
        Rows of the embedding, in tokens.
    hidden_size, intermediate_size : int
        Widths of the residual stream and of the feed-forward layer, in elements.
    num_hidden_layers, num_attention_heads : int
        Number of blocks, and of query heads in each.
    num_key_value_heads : int, optional
        Number of key and value heads; divides `num_attention_heads`, which is also the default.
    head_dim : int, optional
        Width of a head, in elements; even. The default is ``hidden_size // num_attention_heads``. This and
        `num_key_value_heads` are stored as numbers, which `replace` keeps unless given None.
    model_type : str
        The family: the name of a module of `bitnet.models`.
    architectures : str or list of str
        Transformers' classes. They tell apart families of one `model_type`: 1bitLLM's ``BitnetForCausalLM`` is a llama.
    hidden_act : {"relu2", "silu", "gelu", "gelu_pytorch_tanh"}
        The gate's function: squared ReLU, SiLU, GELU by the error function, GELU by tanh.
    rms_norm_eps, rope_theta : float
        What RMSNorm adds to the mean square; base of the rotary frequencies ``theta ** (-2 * i / head_dim)``. Above 0.
    max_position_embeddings : int
        The longest sequence the model is meant for, in tokens.
    tie_word_embeddings : bool
        Whether the output head is the embedding.
    attention_bias, mlp_bias : bool
        Whether the projections of the attention and of the feed-forward layer add a bias.
    bos_token_id, eos_token_id : int, optional
        The token a text begins with and those that end it, which may be a list; None for none.
    extra : mapping
        What else a ``config.json`` says, as ``rope_scaling`` or ``quantization_config``; dictionaries are frozen.
    """

    FOREIGN_NAMES: ClassVar[Mapping[str, str]] = foreign(
        vocab_size="n_vocab", hidden_size="dim d_model n_embd", intermediate_size="ffn_dim d_ff n_ff n_inner",
        num_hidden_layers="n_layers num_layers n_layer", num_attention_heads="n_heads num_heads n_head",
        num_key_value_heads="n_kv_heads num_kv_heads n_head_kv", head_dim="d_head head_size", model_type="arch",
        architectures="architecture", hidden_act="activation activation_function hidden_activation",
        rms_norm_eps="eps norm_eps layer_norm_eps", rope_theta="theta rope_base rope_freq_base",
        max_position_embeddings="n_ctx context_length max_seq_len", tie_word_embeddings="tie_embeddings tied",
        attention_bias="use_bias", bos_token_id="bos_id", eos_token_id="eos_id eos_token_ids",
    )  # fmt: skip

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    model_type: str = "bitnet"
    architectures: str | Iterable[str] = ()
    hidden_act: str = "relu2"
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    max_position_embeddings: int = 4096
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | Iterable[int] | None = ()
    extra: Mapping[str, Any] = FrozenDict()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.type is int:
                self._whole(field.name, SIZES)
            elif field.type is float:
                self._real(field.name, "a finite number above 0", lambda number: number > 0)
            elif field.type is bool:
                self._flag(field.name)
        for name in ("num_key_value_heads", "head_dim"):
            self._whole(name, SIZES, or_none=True)
        heads = self.num_attention_heads
        shared, width = self.num_key_value_heads or heads, self.head_dim or self.hidden_size // heads
        if heads % shared:
            raise self._conflict(f"{shared} key/value heads do not divide {heads} attention heads")
        if self.head_dim is None and self.hidden_size % heads:
            raise self._conflict(f"{heads} heads do not divide hidden_size, {self.hidden_size}; set head_dim")
        self._set("num_key_value_heads", shared)
        self._set("head_dim", width)
        if width % 2:
            raise self._refused("head_dim", "even, because the rotary embedding turns pairs of elements")
        if not isinstance(self.model_type, str) or not self.model_type:
            raise self._refused("model_type", "the name of a family, such as 'bitnet'")
        self._strings("architectures", "a class name or a list of them")
        self._choice("hidden_act", GATES)
        self._whole("bos_token_id", range(self.vocab_size), or_none=True)
        self._token_ids("eos_token_id", range(self.vocab_size), none=())
        if not isinstance(self.extra, Mapping) or not is_json(self.extra):
            raise self._refused("extra", "a mapping of names to values that JSON can hold")
        self._set("extra", frozen(self.extra))
        for field in dataclasses.fields(self):
            if field.name in self.extra:
                raise self._conflict(f"extra has '{field.name}', which is a field; set that instead")

    @classmethod
    def from_hugging_face(cls, d: Mapping[str, Any], **defaults: Any) -> Self:
        """Read the dictionary of a ``config.json``.

        Such a file mixes three kinds of keys. Fields are checked. `BOOKKEEPING` cannot change what the model computes
        and is dropped. All others are kept in `extra`, because only the reader of the family can know what they do to
        the function; `from_dict` stays strict. The ``rope_theta`` in Transformers 5's ``rope_parameters`` is the field;
        what else these say stays in `extra`.

        Parameters
        ----------
        d : mapping
            The file's content. A null says what a missing key says.
        **defaults
            Fields that hold where the file says nothing. A family passes what its own class in Transformers assumes.
            If neither names one of `STATED_BY_FAMILY`, that is an error: a guess would run the wrong function.
        """
        if not isinstance(d, Mapping):
            raise ConfigurationError.not_a_mapping(cls.__name__, d)
        cls.check_names(defaults)
        read = {name: value for name, value in d.items() if value is not None and name not in BOOKKEEPING}
        rope = read.get("rope_parameters")
        if isinstance(rope, Mapping) and "rope_theta" in rope:
            theta, other = rope["rope_theta"], read.setdefault("rope_theta", rope["rope_theta"])
            if theta != other:
                raise ConfigurationError.conflict(cls.__name__, f"rope_theta is {other}, in rope_parameters {theta}")
            if rope == {"rope_theta": theta, "rope_type": "default"}:
                del read["rope_parameters"]
        own = {field.name for field in dataclasses.fields(cls)} - {"extra"}
        fields = {**defaults, **{name: value for name, value in read.items() if name in own}}
        if missing := [name for name in STATED_BY_FAMILY if name not in fields]:
            raise ConfigurationError.missing_fields(cls.__name__, missing)
        fields["extra"] = {**defaults.get("extra", {}), **{name: read[name] for name in read if name not in own}}
        return cls(**fields)


@checks_names
@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizationConfig(Config):
    """How numbers become ternary weights and 8-bit activations.

    Parameters
    ----------
    weight_bits : float
        Information in a weight, in bits: 1.58, for ``log2(3)``, which is ternary. 2 means the same and is stored so.
    activation_bits : int
        Bits of a quantised activation; 8.
    symmetric : bool
        Whether zero stays zero, without an offset; True.
    per_channel : bool
        Whether each row of a weight has a scale of its own, rather than the whole weight one.
    group_size : {None, 64, 128}
        Number of neighbouring columns of a row that share a scale; None for no groups. Excludes `per_channel`.
    method : {"absmean"}
        What the scale is: the mean of the absolute values it stands for.
    """

    FOREIGN_NAMES: ClassVar[Mapping[str, str]] = foreign(
        weight_bits="bit_width bits wbits w_bits nbits", activation_bits="abits a_bits input_bits",
        symmetric="use_symmetric sym", per_channel="use_per_channel channelwise per_row",
        group_size="groupsize block_size", method="quant_method quantization_method",
    )  # fmt: skip

    weight_bits: float = 1.58
    activation_bits: int = 8
    symmetric: bool = True
    per_channel: bool = False
    group_size: int | None = None
    method: str = "absmean"

    def __post_init__(self) -> None:
        needed = "1.58 (or 2, which means the same), because this package quantizes weights to ternary"
        self._real("weight_bits", needed, lambda bits: bits == 2 or abs(bits - 1.58) < 0.006)  # so is log2(3)
        self._set("weight_bits", 1.58)
        self._whole("activation_bits", (8,), "8, because the kernels multiply ternary weights by int8 activations")
        self._flag("symmetric")
        if not self.symmetric:
            raise self._refused("symmetric", "True, because the codes -1, 0 and 1 have no offset")
        self._flag("per_channel")
        self._whole("group_size", (64, 128), "64 or 128 columns", or_none=True)
        if self.per_channel and self.group_size:
            raise self._conflict(f"per_channel is one scale a row, group_size {self.group_size} is several; set one")
        self._choice("method", ("absmean",))


@checks_names
@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig(Config):
    """How a model runs on this machine.

    Parameters
    ----------
    device : {"auto", "cpu"}
        Where it runs; "auto" takes the best device there is.
    num_threads : int, optional
        Threads that compute together, 1 to 1024. None takes ``BITNET_NUM_THREADS``, or what this process may use.
    packing : {"auto", "i2", "t5"}
        How ternary weights lie in memory: 2 or 1.6 bits a weight. "auto" takes what fits the weights and is the faster
        one here, which is measured once (``bitnet doctor`` shows it).
    kv_dtype : {"float16", "float32", "int8"}
        Type of the cached keys and values: 2, 4 or 1 bytes an element. "int8" has a scale for each head and token, and
        attends in integers, with queries and weights of 14 bits, which is faster for long texts.
    head_dtype : {"int8", "float16", "bfloat16", "float32"}
        Type of the output head in memory: 1, 2, 2 or 4 bytes a weight. "int8" quantises it.
    load : {"mmap", "copy"}
        What becomes of weights that a file has as kernels read them (``bitnet convert``): they stay in the file's
        mapping, open at once and shared by all processes, or are copied into memory of huge pages, where a step reads
        them faster. What a checkpoint has in other forms is packed, which is a copy.
    verify : {None, "load"}
        Whether loading makes checksums of all tensors, compares them with those stored beside the checkpoint, if there
        are any, and keeps them for ``model.verify()``. It reads the files a second time.
    activations : {"auto", "int8", "float32"}
        What ternary weights multiply: activations rounded to 8 bits for each token, as BitNet models are trained, or as
        they are, as of TriLM. "auto" takes what the checkpoint was made for, as far as that shows.
    weights : {"ternary", "float"}
        What projections whose weights are stored as floats become: ternary, as BitNet models are trained, or what they
        are, which is slow and large, and there to be compared with. Weights that are stored ternary stay so.
    hidden_act : {"auto", "relu2", "silu", "gelu", "gelu_pytorch_tanh"}
        The gate's function; "auto" takes what the checkpoint says. A GGUF file does not say it, its architecture does.
    i2s_layout : {"auto", "x86", "arm", "rows4"}
        The layout of I2_S weights in a GGUF file, which the file does not say; "auto" detects it where weights tell.
    max_batch_size : int
        The most requests that run together; others wait.
    max_batch_tokens : int
        The most tokens of a step, at least `max_batch_size`: so long are the pieces in which a prompt is read that has
        the engine to itself.
    prefill_chunk : int
        Tokens of prompts in a step, at most, while others are being answered, who wait for such a step; twice as many
        while several prompts are read.
    max_queue : int
        The most requests that may wait; one more is refused.
    max_kv_tokens : int, optional
        Tokens whose keys and values are in memory, at most, in pages of 64; where they do not suffice, the youngest
        requests pause. None for as many as the running requests need, and to be kept for reuse one context.
    prefix_cache : bool
        Whether a prompt that begins like an earlier text takes over what was computed then.
    """

    FOREIGN_NAMES: ClassVar[Mapping[str, str]] = foreign(
        device="backend", num_threads="threads n_threads nthreads", packing="pack weight_packing",
        kv_dtype="cache_dtype kv_cache_dtype", head_dtype="lm_head_dtype", load="load_mode loading",
        verify="check checksums", activations="activation_dtype act_dtype", weights="weight_dtype",
        hidden_act="activation activation_function hidden_activation",
        i2s_layout="i2_s_layout", max_batch_size="max_num_seqs n_parallel parallel max_batch",
        max_batch_tokens="max_num_batched_tokens n_batch batch_tokens", max_queue="queue_size max_waiting queue",
        prefill_chunk="chunk_size chunked_prefill_size n_ubatch prefill_chunk_size",
        max_kv_tokens="kv_cache_tokens max_total_tokens kv_tokens",
        prefix_cache="enable_prefix_caching cache_prompt prefix_caching",
    )  # fmt: skip

    device: str = "auto"
    num_threads: int | None = None
    packing: str = "auto"
    kv_dtype: str = "float16"
    head_dtype: str = "int8"
    load: str = "mmap"
    verify: str | None = None
    activations: str = "auto"
    weights: str = "ternary"
    hidden_act: str = "auto"
    i2s_layout: str = "auto"
    max_batch_size: int = 32
    max_batch_tokens: int = 256
    prefill_chunk: int = 64
    max_queue: int = 1024
    max_kv_tokens: int | None = None
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        self._choice("device", ("auto", "cpu"))
        self._whole("num_threads", range(1, 1025), or_none=True)
        self._choice("packing", ("auto", "i2", "t5"))
        self._choice("kv_dtype", ("float16", "float32", "int8"))
        self._choice("head_dtype", ("int8", "float16", "bfloat16", "float32"))
        self._choice("load", ("mmap", "copy"))
        if self.verify is not None:
            self._choice("verify", ("load",))
        self._choice("activations", ("auto", "int8", "float32"))
        self._choice("weights", ("ternary", "float"))
        self._choice("hidden_act", ("auto", *GATES))
        self._choice("i2s_layout", ("auto", "x86", "arm", "rows4"))
        for name in ("max_batch_size", "max_batch_tokens", "prefill_chunk", "max_queue"):
            self._whole(name, SIZES)
        self._whole("max_kv_tokens", range(64, SIZES.stop), or_none=True)
        self._flag("prefix_cache")
        if self.max_batch_size > self.max_batch_tokens:
            raise self._conflict(f"max_batch_size is {self.max_batch_size}, max_batch_tokens only "
                                 f"{self.max_batch_tokens}")


@checks_names
@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryPoolConfig(Config):
    """How a `HybridMemoryPool` keeps memory.

    Parameters
    ----------
    threshold : int
        The largest small block, in bytes: a power of two from 4096 to ``2**24``. Larger blocks are extents of their
        own.
    limit : int, optional
        The most bytes that may be live at once; None for no limit.
    huge_pages : bool
        Whether to ask the system for huge pages.
    guards : bool, optional
        Whether to find writes behind a block when it is freed, and to fill new and freed memory with patterns. None
        for yes in a debug build and where ``BITNET_DEBUG=1`` is set, and no elsewhere.
    tracking : {"off", "counts", "tracebacks"}
        What is noted of each block: nothing, its age and order, or also by which code it was allocated.
    """

    FOREIGN_NAMES: ClassVar[Mapping[str, str]] = foreign(
        threshold="small_block_threshold small_threshold", limit="max_bytes memory_limit max_size",
        huge_pages="use_huge_pages hugepages", guards="guard_bytes", tracking="track",
    )  # fmt: skip

    threshold: int = 1 << 20
    limit: int | None = None
    huge_pages: bool = True
    guards: bool | None = None
    tracking: str = "off"

    def __post_init__(self) -> None:
        powers = [1 << n for n in range(12, 25)]
        self._whole("threshold", powers, "a power of two from 4096 to 16777216")
        self._whole("limit", range(1, 1 << 62), or_none=True)
        self._flag("huge_pages")
        if self.guards is not None:
            self._flag("guards")
        self._choice("tracking", ("off", "counts", "tracebacks"))
