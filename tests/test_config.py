"""The four configurations: names, checks, messages, conversion, freezing."""

import copy
import dataclasses
import fractions
import inspect
import json
import math
import pickle

import numpy as np
import pytest

from bitnet import config
from bitnet.config import EngineConfig, GenerationConfig, ModelConfig, QuantizationConfig
from bitnet.errors import ConfigurationError

SIZES = {  # of BitNet b1.58 2B4T
    "vocab_size": 128256, "hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 30,
    "num_attention_heads": 20,
}  # fmt: skip
PUBLISHED = {  # config.json of microsoft/bitnet-b1.58-2B-4T
    **SIZES, "architectures": ["BitNetForCausalLM"], "auto_map": {"AutoConfig": "configuration_bitnet.BitNetConfig"},
    "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "relu2", "initializer_range": 0.02,
    "max_position_embeddings": 4096, "model_type": "bitnet", "num_key_value_heads": 5, "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
    "quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]},
}  # fmt: skip
BIG = "2147483647"

# One of each class with no field at its default, so that a field that is dropped or mixed up is seen.
FULL = [
    ModelConfig(
        **SIZES, num_key_value_heads=5, head_dim=64, model_type="llama", architectures=["BitnetForCausalLM"],
        hidden_act="silu", rms_norm_eps=1e-6, rope_theta=10000, max_position_embeddings=2048, tie_word_embeddings=False,
        attention_bias=True, mlp_bias=True, bos_token_id=1, eos_token_id=[2, 3],
        extra={"rope_scaling": {"factor": 8.0, "list": [1, [2, None]]}, "weight_bits": 1, "flag": True},
    ),
    QuantizationConfig(group_size=128),
    QuantizationConfig(per_channel=True),
    EngineConfig(device="cpu", num_threads=3, packing="t5", kv_dtype="float32", head_dtype="bfloat16", verify="load",
                 load="copy", activations="float32", weights="float", hidden_act="silu", i2s_layout="arm",
                 max_batch_size=5, max_batch_tokens=100, prefill_chunk=10, max_queue=7, max_kv_tokens=4096,
                 prefix_cache=False),
    GenerationConfig(
        max_new_tokens=9, min_new_tokens=2, do_sample=True, temperature=0.6, top_k=40, top_p=0.9, min_p=0.05,
        repetition_penalty=1.1, eos_token_id=[7, 8], stop_strings=["\n\n", "User:"], seed=11, typical_p=0.8,
        frequency_penalty=0.5, presence_penalty=-0.5, no_repeat_ngram_size=4, logit_bias={9: 1.5, "3": -2},
        num_return_sequences=2, logprobs=3, prompt_lookup_num_tokens=6,
    ),
]  # fmt: skip
DEFAULT = [ModelConfig(**SIZES), QuantizationConfig(), EngineConfig(), GenerationConfig()]
CLASSES = [type(one) for one in DEFAULT]
anyone = pytest.mark.parametrize("cfg", FULL + DEFAULT, ids=lambda cfg: type(cfg).__name__)
any_class = pytest.mark.parametrize("cls", CLASSES)


def model(**fields):
    return ModelConfig(**{**SIZES, **fields})


def refusal(make, *args, **fields):
    with pytest.raises(ConfigurationError) as caught:
        make(*args, **fields)
    return str(caught.value)


@pytest.mark.parametrize(
    ("cls", "foreign", "right"),
    [(cls, foreign, right) for cls in CLASSES for foreign, right in cls.FOREIGN_NAMES.items()],
)
def test_a_foreign_name_is_answered_with_the_right_one(cls, foreign, right):
    names = [field.name for field in dataclasses.fields(cls)]
    assert right in names
    assert foreign not in names
    sentence = f"{cls.__name__} has no field '{foreign}'; use '{right}'"
    assert refusal(cls, **{foreign: 1}) == sentence
    assert refusal(cls.from_dict, {foreign: 1}) == sentence
    full = next(cfg for cfg in FULL if type(cfg) is cls)
    assert refusal(full.replace, **{foreign: 1}) == sentence
    assert refusal(dataclasses.replace, full, **{foreign: 1}) == sentence


def test_the_common_foreign_names_are_known():
    expected = {
        QuantizationConfig: "bit_width bits wbits use_symmetric sym abits groupsize block_size",
        GenerationConfig: "max_tokens n_predict temp stop topk topp",
        EngineConfig: "threads n_threads nthreads",
        ModelConfig: "n_layers num_layers n_heads dim d_model",
    }
    for cls, names in expected.items():
        assert set(names.split()) <= set(cls.FOREIGN_NAMES)


def test_another_name_is_answered_with_the_closest_or_with_all():
    sentence = "GenerationConfig has no field 'temprature'; use 'temperature'"
    assert refusal(GenerationConfig, temprature=1.0) == sentence
    sentence = "EngineConfig has no field 'xyzzy'; it has "
    sentence += ", ".join(f"'{field.name}'" for field in dataclasses.fields(EngineConfig))
    assert refusal(EngineConfig, xyzzy=1) == refusal(EngineConfig.from_dict, {"xyzzy": 1}) == sentence


@any_class
def test_from_dict_refuses_any_name_that_is_no_field(cls):
    for name in ("self", "cls", 3):
        assert refusal(cls.from_dict, {name: 1}).startswith(f"{cls.__name__} has no field '{name}'; it has '")


@any_class
def test_fields_are_keyword_only_and_in_the_signature(cls):
    parameters = inspect.signature(cls).parameters
    assert list(parameters) == [field.name for field in dataclasses.fields(cls)]
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    with pytest.raises(TypeError, match=rf"{cls.__name__}\.__init__\(\) takes 1 positional argument"):
        cls(1)


@any_class
def test_the_docstring_names_every_field(cls):
    headings = [line.split(" : ")[0] for line in cls.__doc__.splitlines() if " : " in line]
    described = {name.strip() for heading in headings for name in heading.split(",")}
    assert described == {field.name for field in dataclasses.fields(cls)}


def test_missing_fields_are_all_named():
    assert refusal(ModelConfig, vocab_size=4, hidden_size=2, intermediate_size=2) == (
        "ModelConfig needs 'num_hidden_layers', 'num_attention_heads'; they were not given"
    )
    sizes = {name: size for name, size in SIZES.items() if name != "hidden_size"}
    assert refusal(ModelConfig, **sizes) == "ModelConfig needs 'hidden_size'; it was not given"


@any_class
@pytest.mark.parametrize("got", [None, [("a", 1)], "a"])
def test_from_dict_wants_a_mapping(cls, got):
    sentence = f"{cls.__name__} is made from a dictionary of its fields, not from {type(got).__name__}"
    assert refusal(cls.from_dict, got) == sentence
    if cls is ModelConfig:
        assert refusal(cls.from_hugging_face, got) == sentence


@anyone
def test_from_dict_of_to_dict_is_equal(cfg):
    d = cfg.to_dict()
    assert list(d) == [field.name for field in dataclasses.fields(cfg)]
    assert json.loads(json.dumps(d)) == d
    assert type(cfg).from_dict(json.loads(json.dumps(d))) == type(cfg).from_dict(d) == cfg


def test_defaults():
    assert QuantizationConfig().to_dict() == {
        "weight_bits": 1.58, "activation_bits": 8, "symmetric": True, "per_channel": False, "group_size": None,
        "method": "absmean",
    }  # fmt: skip
    assert EngineConfig().to_dict() == {
        "device": "auto", "num_threads": None, "packing": "auto", "kv_dtype": "float16", "head_dtype": "int8",
        "load": "mmap", "verify": None, "activations": "auto", "weights": "ternary", "hidden_act": "auto",
        "i2s_layout": "auto", "max_batch_size": 32, "max_batch_tokens": 256, "prefill_chunk": 64, "max_queue": 1024,
        "max_kv_tokens": None, "prefix_cache": True,
    }  # fmt: skip
    assert GenerationConfig().to_dict() == {
        "max_new_tokens": 256, "min_new_tokens": 0, "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
        "min_p": None, "typical_p": 1.0, "repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0,
        "no_repeat_ngram_size": 0, "logit_bias": [], "eos_token_id": None, "stop_strings": [],
        "prompt_lookup_num_tokens": None, "num_return_sequences": 1, "logprobs": None, "seed": None,
    }  # fmt: skip


@anyone
def test_copies_are_equal_and_hash_alike(cfg):
    copies = [pickle.loads(pickle.dumps(cfg)), copy.copy(cfg), copy.deepcopy(cfg), cfg.replace()]
    for other in copies:
        assert type(other) is type(cfg)
        assert other == cfg
    assert len({cfg, *copies}) == 1


@anyone
def test_fields_cannot_be_set_or_deleted(cfg):
    for field in dataclasses.fields(cfg):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(cfg, field.name, getattr(cfg, field.name))
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(cfg, field.name)


def test_the_full_samples_leave_no_default():
    for cls in CLASSES:
        for field in dataclasses.fields(cls):
            changed = any(getattr(cfg, field.name) != field.default for cfg in FULL if type(cfg) is cls)
            fixed = field.name in ("weight_bits", "activation_bits", "symmetric", "method")
            assert changed != fixed, field.name


def test_replace_checks_the_result():
    cfg = EngineConfig(num_threads=3, packing="i2")
    assert cfg.replace(num_threads=5) == EngineConfig(num_threads=5, packing="i2")
    assert cfg.num_threads == 3
    sentence = "GenerationConfig: min_new_tokens is 4, max_new_tokens only 3"
    assert refusal(GenerationConfig(max_new_tokens=3).replace, min_new_tokens=4) == sentence


def test_an_instance_keeps_no_hold_on_what_it_was_made_from():
    given = {"rope_scaling": {"factor": 8.0, "list": [1]}}
    ids, strings, names = [5], ["stop"], ["LlamaForCausalLM"]
    cfg = model(extra=given, eos_token_id=ids, architectures=names)
    generation = GenerationConfig(eos_token_id=ids, stop_strings=strings)
    given["rope_scaling"]["list"].append(2)
    given["more"] = 1
    for one in (ids, strings, names):
        one.append(one[0])
    assert cfg.extra == {"rope_scaling": {"factor": 8.0, "list": (1,)}}
    assert (cfg.eos_token_id, cfg.architectures) == ((5,), ("LlamaForCausalLM",))
    assert (generation.eos_token_id, generation.stop_strings) == ((5,), ("stop",))
    cfg.to_dict()["extra"]["rope_scaling"]["list"].append(3)
    assert cfg.extra["rope_scaling"]["list"] == (1,)
    with pytest.raises(TypeError):
        cfg.extra["more"] = 1
    with pytest.raises(TypeError):
        cfg.extra["rope_scaling"]["factor"] = 1.0


@pytest.mark.parametrize("make", [int, np.int8, np.uint16, np.int32, np.int64, np.array])
def test_whole_numbers_of_numpy_become_python_ints(make):
    cfg = GenerationConfig(max_new_tokens=make(9), eos_token_id=make(7), do_sample=True, top_k=make(3), seed=make(1))
    values = (cfg.max_new_tokens, cfg.eos_token_id[0], cfg.top_k, cfg.seed)
    assert values == (9, 7, 3, 1)
    assert {type(value) for value in values} == {int}
    assert type(EngineConfig(num_threads=make(2)).num_threads) is int
    quantization = QuantizationConfig(activation_bits=make(8), group_size=make(64))
    assert (type(quantization.activation_bits), type(quantization.group_size)) == (int, int)


@pytest.mark.parametrize("make", [float, np.float16, np.float32, np.float64, fractions.Fraction])
def test_real_numbers_become_python_floats(make):
    cfg = GenerationConfig(do_sample=True, temperature=make(0.5), top_p=make(0.25), min_p=make(0.125))
    assert (cfg.temperature, cfg.top_p, cfg.min_p) == (0.5, 0.25, 0.125)
    assert {type(value) for value in (cfg.temperature, cfg.top_p, cfg.min_p)} == {float}


def test_the_narrower_scalars_become_the_wider():
    cfg = model(rope_theta=10000, rms_norm_eps=np.int32(1))
    assert (repr(cfg.rope_theta), repr(cfg.rms_norm_eps)) == ("10000.0", "1.0")
    assert QuantizationConfig(per_channel=np.True_).per_channel is True


@pytest.mark.parametrize("name", [*SIZES, "max_position_embeddings"])
def test_what_is_no_size_is_refused(name):
    for got in (True, np.True_, 3.0, np.float32(3), "3", None, [3], math.nan, 3j, -1, 0, 2**31):
        sentence = f"ModelConfig.{name} is {got!r}; it must be a whole number from 1 to {BIG}"
        assert refusal(model, **{name: got}) == sentence


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
def test_what_is_no_positive_number_is_refused(name):
    for got in (True, np.False_, "1", None, [1.0], math.nan, math.inf, -math.inf, np.float32("nan"), 10**400, 0, -1):
        assert refusal(model, **{name: got}) == f"ModelConfig.{name} is {got!r}; it must be a finite number above 0"


@pytest.mark.parametrize("got", [0, 1, "false", None, np.int8(1), np.array(True)])
def test_what_is_no_truth_value_is_refused(got):
    for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
        assert refusal(model, **{name: got}) == f"ModelConfig.{name} is {got!r}; it must be True or False"


def test_head_fields_follow_from_the_others():
    cfg = model()
    assert (cfg.num_key_value_heads, cfg.head_dim) == (20, 128)
    assert model(num_key_value_heads=5, head_dim=256).head_dim == 256
    assert model(hidden_size=2561, head_dim=66).head_dim == 66
    narrow = cfg.replace(hidden_size=1280)
    assert narrow.head_dim == 128
    assert narrow.replace(head_dim=None).head_dim == 64


def test_heads_that_do_not_fit_are_refused():
    assert refusal(model, num_key_value_heads=3) == "ModelConfig: 3 key/value heads do not divide 20 attention heads"
    assert refusal(model, hidden_size=2561) == "ModelConfig: 20 heads do not divide hidden_size, 2561; set head_dim"
    even = "it must be even, because the rotary embedding turns pairs of elements"
    assert refusal(model, head_dim=63) == f"ModelConfig.head_dim is 63; {even}"
    assert refusal(model, hidden_size=20 * 63) == f"ModelConfig.head_dim is 63; {even}"
    for name in ("num_key_value_heads", "head_dim"):
        sentence = f"ModelConfig.{name} is 0; it must be a whole number from 1 to {BIG}, or None"
        assert refusal(model, **{name: 0}) == sentence


def test_words_of_a_model_are_checked():
    assert refusal(model, hidden_act="relu") == (
        "ModelConfig.hidden_act is 'relu'; it must be one of 'relu2', 'silu', 'gelu', 'gelu_pytorch_tanh'"
    )
    assert refusal(model, hidden_act=["silu"]).startswith("ModelConfig.hidden_act is ['silu']; it must be one of")
    for got in ("", None, 3):
        assert refusal(model, model_type=got) == (
            f"ModelConfig.model_type is {got!r}; it must be the name of a family, such as 'bitnet'"
        )
    for got in ([""], [3], 3, {"a": 1}):
        assert refusal(model, architectures=got) == (
            f"ModelConfig.architectures is {got!r}; it must be a class name or a list of them"
        )
    assert model(architectures="LlamaForCausalLM").architectures == ("LlamaForCausalLM",)
    assert model(architectures=None).architectures == ()


def test_token_ids_lie_in_the_vocabulary():
    cfg = model(bos_token_id=0, eos_token_id=128255)
    assert (cfg.bos_token_id, cfg.eos_token_id) == (0, (128255,))
    assert model(eos_token_id=(np.int64(1), 2)).eos_token_id == (1, 2)
    assert model(eos_token_id=np.array([1, 2])).eos_token_id == (1, 2)
    assert model(eos_token_id=None).eos_token_id == model(eos_token_id=[]).eos_token_id == ()
    assert refusal(model, bos_token_id=128256) == (
        "ModelConfig.bos_token_id is 128256; it must be a whole number from 0 to 128255, or None"
    )
    for got in (128256, -1, [1, 128256], True, [True], "1", b"1", [[1]], [None], {1: 2}, 1.0):
        assert refusal(model, eos_token_id=got) == (
            f"ModelConfig.eos_token_id is {got!r}; it must be a token id from 0 to 128255, or a list of them"
        )


def test_extra_holds_only_json():
    for got in (None, 3, "ab", [("a", 1)], {1: 2}, {"a": {1: 2}}, {"a": {3}}, {"a": [object]}):
        sentence = f"ModelConfig.extra is {got!r}; it must be a mapping of names to values that JSON can hold"
        assert refusal(model, extra=got) == sentence


def test_extra_cannot_hide_a_field():
    assert refusal(model, extra={"rope_theta": 1.0}) == (
        "ModelConfig: extra has 'rope_theta', which is a field; set that instead"
    )


def test_a_published_file_is_read():
    assert ModelConfig.from_hugging_face(PUBLISHED) == ModelConfig(
        **SIZES, num_key_value_heads=5, head_dim=128, model_type="bitnet", architectures=("BitNetForCausalLM",),
        hidden_act="relu2", rms_norm_eps=1e-5, rope_theta=5e5, max_position_embeddings=4096, tie_word_embeddings=True,
        bos_token_id=128000, eos_token_id=(128001,),
        extra={"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ("lm_head",)}},
    )  # fmt: skip


def test_bookkeeping_is_dropped_and_the_rest_kept():
    bookkeeping = dict.fromkeys(config.BOOKKEEPING, "anything")
    more = {"rope_scaling": None, "weight_bits": 1, "n_head": 2}
    cfg = ModelConfig.from_hugging_face({**PUBLISHED, **bookkeeping, **more})
    assert set(cfg.extra) == {"quantization_config", "weight_bits", "n_head"}
    expected = "torch_dtype dtype transformers_version use_cache pad_token_id initializer_range auto_map"
    assert set(expected.split()) <= config.BOOKKEEPING
    assert not config.BOOKKEEPING & {field.name for field in dataclasses.fields(ModelConfig)}


def test_null_is_the_same_as_missing():
    nothing = {"head_dim": None, "eos_token_id": None, "num_key_value_heads": None}
    cfg = ModelConfig.from_hugging_face({**PUBLISHED, **nothing})
    assert (cfg.head_dim, cfg.eos_token_id, cfg.num_key_value_heads) == (128, (), 20)
    assert refusal(ModelConfig.from_hugging_face, {**PUBLISHED, "vocab_size": None}) == (
        "ModelConfig needs 'vocab_size'; it was not given"
    )


@pytest.mark.parametrize("name", config.STATED_BY_FAMILY)
def test_what_depends_on_the_family_is_not_guessed(name):
    silent = {key: value for key, value in PUBLISHED.items() if key != name}
    assert refusal(ModelConfig.from_hugging_face, silent) == f"ModelConfig needs '{name}'; it was not given"
    assert ModelConfig.from_hugging_face(silent, **{name: PUBLISHED[name]}) == ModelConfig.from_hugging_face(PUBLISHED)


def test_the_file_comes_before_the_defaults_of_a_family():
    cfg = ModelConfig.from_hugging_face(PUBLISHED, hidden_act="silu", mlp_bias=True, extra={"pooling": "last"})
    assert (cfg.hidden_act, cfg.mlp_bias) == ("relu2", True)
    assert set(cfg.extra) == {"pooling", "quantization_config"}
    assert refusal(ModelConfig.from_hugging_face, PUBLISHED, theta=1.0) == (
        "ModelConfig has no field 'theta'; use 'rope_theta'"
    )


def test_rope_parameters_of_transformers_5_are_read():
    def read(rope, **more):
        d = {key: value for key, value in PUBLISHED.items() if key != "rope_theta"}
        return ModelConfig.from_hugging_face({**d, "rope_parameters": rope, **more})

    plain = read({"rope_theta": 1e6, "rope_type": "default"})
    assert (plain.rope_theta, "rope_parameters" in plain.extra) == (1e6, False)
    scaled = read({"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0}, rope_theta=1e6)
    assert scaled.rope_theta == 1e6
    assert scaled.extra["rope_parameters"] == {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0}
    by_layer = read({"full_attention": {"rope_theta": 1e6}}, rope_theta=1e4)
    assert by_layer.rope_theta == 1e4
    assert by_layer.extra["rope_parameters"] == {"full_attention": {"rope_theta": 1e6}}
    assert refusal(read, {"rope_theta": 1e6}, rope_theta=1e4) == (
        "ModelConfig: rope_theta is 10000.0, in rope_parameters 1000000.0"
    )


@pytest.mark.parametrize("got", [1.58, 2, 2.0, np.float32(1.58), np.float16(1.58), np.int64(2), math.log2(3)])
def test_ternary_is_1_58_bits(got):
    cfg = QuantizationConfig(weight_bits=got)
    assert cfg.weight_bits == 1.58
    assert cfg == QuantizationConfig()


@pytest.mark.parametrize("got", [1, 4, 8, 1.5, 1.6, 0, -1.58, True, "2", None, math.nan])
def test_other_widths_of_weights_are_refused(got):
    assert refusal(QuantizationConfig, weight_bits=got) == (
        f"QuantizationConfig.weight_bits is {got!r}; it must be 1.58 (or 2, which means the same), "
        "because this package quantizes weights to ternary"
    )


@pytest.mark.parametrize(
    ("name", "refused", "needed"),
    [
        ("activation_bits", [4, 8.0, None], "8, because the kernels multiply ternary weights by int8 activations"),
        ("symmetric", [False], "True, because the codes -1, 0 and 1 have no offset"),
        ("symmetric", [1, None], "True or False"),
        ("per_channel", [1, None], "True or False"),
        ("group_size", [32, 0, 64.0, True], "64 or 128 columns, or None"),
        ("method", ["absmax", None], "one of 'absmean'"),
    ],
)  # fmt: skip
def test_quantization_is_checked(name, refused, needed):
    for got in refused:
        sentence = f"QuantizationConfig.{name} is {got!r}; it must be {needed}"
        assert refusal(QuantizationConfig, **{name: got}) == sentence


def test_a_row_has_one_scale_or_several():
    assert refusal(QuantizationConfig, per_channel=True, group_size=64) == (
        "QuantizationConfig: per_channel is one scale a row, group_size 64 is several; set one"
    )


def test_num_threads_is_checked():
    assert [EngineConfig(num_threads=number).num_threads for number in (None, 1, 1024)] == [None, 1, 1024]
    for got in (0, -1, 1025, 2.0, "4", True):
        sentence = f"EngineConfig.num_threads is {got!r}; it must be a whole number from 1 to 1024, or None"
        assert refusal(EngineConfig, num_threads=got) == sentence


def test_words_of_an_engine_are_checked():
    known_of = {"packing": "auto i2 t5", "kv_dtype": "float16 float32 int8",
                "head_dtype": "int8 float16 bfloat16 float32",
                "activations": "auto int8 float32", "weights": "ternary float", "load": "mmap copy",
                "hidden_act": "auto relu2 silu gelu gelu_pytorch_tanh", "i2s_layout": "auto x86 arm rows4"}
    for name, known in {"device": "auto cpu", **known_of}.items():
        known = known.split()
        assert [getattr(EngineConfig(**{name: word}), name) for word in known] == known
        for got in ("tpu", None, ["auto"], np.array(known)):
            listed = ", ".join(f"'{word}'" for word in known)
            assert refusal(EngineConfig, **{name: got}) == f"EngineConfig.{name} is {got!r}; it must be one of {listed}"
