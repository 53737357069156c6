"""Programs: what the builder refuses, the plan of the scratch memory, runs, their errors, and looking at them."""

import functools
import gc
import threading

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from bitnet._core import memory
from bitnet._core.builder import Builder, TableInFile
from bitnet._core.packing import pack_codes
from bitnet._core.program import PAGE_TOKENS, Execution, Program
from bitnet.errors import InferenceError, ModelLoadError, ShapeError

IDS = np.random.default_rng(1).integers(0, 97, 150).astype(np.int32)
AT = "model.layers.1."
ACTS = {"bitnet": "relu2", "llama": "silu"}


@pytest.fixture(scope="module")
def program():
    return tiny.program()


@pytest.fixture
def runner(program):
    return tiny.Runner(program, 160)


# ---- building


def cut(array):
    return array[:-1]


def narrower(array):
    return np.ascontiguousarray(array[:, :-1])


def longer(array):
    return np.concatenate([array, array[:1]])


MISFITS = [
    ({"model.embed_tokens": narrower}, "'model.embed_tokens' has shape (97, 39); the configuration needs (97, 40)"),
    ({"model.embed_tokens": cut}, "'model.embed_tokens' has shape (96, 40); the configuration needs (97, 40)"),
    ({AT + "input_layernorm.weight": cut},
     "'model.layers.1.input_layernorm.weight' has shape (39,); the configuration needs (40,)"),
    ({AT + "self_attn.attn_sub_norm.weight": cut},
     "'model.layers.1.self_attn.attn_sub_norm.weight' has shape (87,); the configuration needs (88,)"),
    ({AT + "mlp.ffn_sub_norm.weight": cut},
     "'model.layers.1.mlp.ffn_sub_norm.weight' has shape (67,); the configuration needs (68,)"),
    ({AT + "self_attn.o_proj": cut},
     "'model.layers.1.self_attn.o_proj' has shape (39, 88); the configuration needs (40, 88)"),
    ({AT + "mlp.down_proj": cut},
     "'model.layers.1.mlp.down_proj' has shape (39, 68); the configuration needs (40, 68)"),
    ({"lm_head": narrower}, "'lm_head' has shape (97, 39); the configuration needs (97, 40)"),
    ({"lm_head": longer}, "'lm_head' has shape (98, 40); the configuration needs (97, 40)"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), MISFITS, ids=[next(iter(row[0])) for row in MISFITS])
def test_what_contradicts_the_configuration_is_refused(change, sentence):
    with pytest.raises(ModelLoadError) as caught:
        tiny.program(change=change)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("change", [
    {"self_attn.o_proj": narrower}, {"mlp.down_proj": narrower},
    {"self_attn.q_proj": narrower, "self_attn.k_proj": narrower, "self_attn.v_proj": narrower},
    {"self_attn.v_proj": cut}, {"mlp.gate_proj": cut},
    # The sums of the rows are right, the parts are not.
    {"mlp.gate_proj": cut, "mlp.up_proj": longer}, {"self_attn.q_proj": cut, "self_attn.k_proj": longer},
], ids=" ".join)  # fmt: skip
@pytest.mark.parametrize("family", ["bitnet", "llama"])
def test_a_linear_layer_of_another_shape_is_refused(change, family):
    with pytest.raises(ModelLoadError, match=r"^'model\.layers\.1\..* has shape .*; the configuration needs"):
        tiny.program(family=family, change={AT + name: how for name, how in change.items()})


def test_operations_are_named_after_their_weights(program):
    inside = ["input_layernorm", "self_attn.q_proj+{0}self_attn.k_proj+{0}self_attn.v_proj", "self_attn.rope",
              "self_attn", "self_attn.attn_sub_norm", "self_attn.o_proj", "attention_residual",
              "post_attention_layernorm", "mlp.gate_proj+{0}mlp.up_proj", "mlp.act", "mlp.ffn_sub_norm",
              "mlp.down_proj", "mlp_residual"]  # fmt: skip
    layers = [at + name.format(at) for at in ("model.layers.0.", AT) for name in inside]
    assert program.names == ("model.embed_tokens", *layers, "model.norm", "lm_head")
    assert program.kinds[:5] == ("embed", "rms_norm", "linear", "rope", "attention")
    assert program.kinds[-2:] == ("rms_norm", "head")
    assert (program.widths[0], program.widths[2], program.widths[-1]) == (40, 176, 0)
    assert (program.vocab_size, program.context) == (97, 300)
    assert program.page_bytes == 2 * 2 * 2 * PAGE_TOKENS * 22 * 4
    assert tiny.program(kv_dtype="float16").page_bytes == program.page_bytes // 2
    assert tiny.program(kv_dtype="int8").page_bytes == 2 * 2 * 2 * PAGE_TOKENS * (24 + 4)


# ---- the scratch memory


def assert_apart(operations, total):
    """Values that are alive during the same operation do not share bytes."""
    lives = {}
    for index, operation in enumerate(operations):
        for value in [*operation["inputs"], *([operation["result"]] if operation["result"] else [])]:
            lives.setdefault(id(value), (value, []))[1].append(index)
    for value, uses in lives.values():
        assert value.offset % 64 == 0
        assert 0 <= value.offset <= value.offset + 4 * value.width <= total
        for other, others in lives.values():
            is_apart = value.offset + 4 * value.width <= other.offset or other.offset + 4 * other.width <= value.offset
            assert value is other or is_apart or uses[-1] < others[0] or others[-1] < uses[0]


@pytest.mark.parametrize("family", ["bitnet", "llama"])
@pytest.mark.parametrize("own_norms", [(), ("k_proj", "up_proj"), ("_proj",)], ids=str)
def test_values_of_a_model_share_no_memory_while_they_live(family, own_norms):
    builder = tiny.builder(tiny.Weights(tiny.config(), own_norms=own_norms), family)
    total = builder.plan()
    assert_apart(builder.operations, total)
    # Memory is reused: a model of more layers needs no more.
    deeper = tiny.Weights(tiny.config(num_hidden_layers=5), own_norms=own_norms)
    assert tiny.builder(deeper, family).plan() == total


@pytest.mark.parametrize("family", ["bitnet", "llama"])
def test_the_scratch_memory_is_what_lives_at_once(family):
    """In the shape of a real model, where a gate's input is most of it."""
    sizes = {"hidden_size": 160, "intermediate_size": 432, "num_attention_heads": 4, "num_key_value_heads": 1}
    wide = tiny.config(**sizes, head_dim=40)
    builder = tiny.builder(tiny.Weights(wide), family)
    total, lives = builder.plan(), {}
    for index, operation in enumerate(builder.operations):
        for value in [*operation["inputs"], *([operation["result"]] if operation["result"] else [])]:
            lives.setdefault(value, []).append(index)
    most = max(sum(-(-4 * value.width // 64) * 64 for value, uses in lives.items() if uses[0] <= index <= uses[-1])
               for index in range(len(builder.operations)))  # fmt: skip
    assert total == most


class AnyWeights:
    """Weights of whatever shape is asked for: the names say it."""

    def floats(self, name):
        return np.ones(int(name.removesuffix(".weight").rpartition(".")[2]), np.float32)

    def own_norm(self, name):
        return (self.floats(name.partition("@")[0]), 1e-6) if name.endswith("!") else None

    def packed(self, name):
        kind, _, rows = name.rstrip("!").partition("@")
        return pack_codes(np.zeros((int(rows), int(kind.rpartition(".")[2])), np.int8), 1.0, "i2")

    def embedding(self, name):
        return np.ones((97, 40), np.float32), "float32"


STEP = st.tuples(
    st.sampled_from(["norm", "linear", "add", "gate"]), st.integers(0, 99), st.integers(0, 99),
    st.lists(st.tuples(st.sampled_from([2, 6, 40, 90]), st.booleans()), min_size=1, max_size=3),
)  # fmt: skip


@given(st.lists(STEP, max_size=30))
def test_values_of_any_program_share_no_memory_while_they_live(steps):
    builder = Builder(AnyWeights(), tiny.config())
    values = [builder.embed("table")]
    for kind, at, other, parts in steps:
        x, h = values[at % len(values)], values[other % len(values)]
        if kind == "norm":
            values.append(builder.rms_norm(x, f"norm.{x.width}"))
        elif kind == "linear":
            names = [f"linear.{x.width}@{rows}{'!' * normed}" for rows, normed in parts]
            values.append(builder.linear(x, *names, rows=[rows for rows, _ in parts]))
        elif kind == "gate":
            values.append(builder.gate(x, "gate"))
        elif x.width == h.width and x is not h:
            builder.add(h, x, "add")
    assert_apart(builder.operations, builder.plan())


# ---- the function


@functools.cache
def numpy_logits(family, **how):
    return tiny.forward(tiny.Weights(tiny.config(hidden_act=ACTS[family]), **how), IDS, family)


@pytest.mark.parametrize("own_norms", [(), ("q_proj", "down_proj"), ("_proj",)], ids=str)
@pytest.mark.parametrize("family", ACTS)
@pytest.mark.parametrize("head_dtype", ["float32", "float16", "bfloat16", "int8"])
def test_a_program_computes_what_numpy_does(isa, packing, family, own_norms, head_dtype):
    how = {"head_dtype": head_dtype, "own_norms": own_norms}
    program = tiny.program(tiny.config(hidden_act=ACTS[family]), family, kind=packing, **how)
    away = np.abs(tiny.Runner(program, 160).alone(IDS) - numpy_logits(family, **how)).max(axis=1)
    # Sums of 40 to 90 products in float32, through two layers, of logits of size 6. One activation in 10^5 lies so near
    # a tie that it rounds the other way in double; it moves the logits of its position and of those that attend to it.
    # The int8 head takes its input in 16 bits: half of a step of 2^-15 of the largest for each of 40 numbers.
    scale = 100 if head_dtype == "int8" else 1
    assert np.median(away) < 1e-5 * scale
    assert (away < 1e-4 * scale).mean() > 0.9


LONG = np.random.default_rng(8).integers(0, 97, 1100).astype(np.int32)


@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "int8"])
def test_a_long_sequence_is_the_same_bits_however_its_parts_are_divided(isa, kv_dtype):
    """Of single tokens, threads compute parts of 256 positions apart."""
    runner = tiny.Runner(tiny.program(tiny.config(max_position_embeddings=1100), kv_dtype=kv_dtype), 1100)
    whole = runner.alone(LONG)
    several = [254, *[1] * 6, 837, 1, 1, 1]
    for num_threads, chunks in ((3, [1100]), (1, [700, 397, 1, 1, 1]), (2, several), (40, [1099, 1])):
        np.testing.assert_array_equal(runner.alone(LONG, chunks, num_threads), whole)
    # Sequences of other lengths beside it: one that has no second part, and one whose last part is one position.
    parts = [(runner.sequence(), LONG[:n]) for n in (1090, 9, 512)]
    runner.step(parts[:1]), runner.step(parts[1:])
    found = runner.step([(sequence, LONG[len(ids) : len(ids) + 1]) for sequence, ids in parts], 2)
    assert [np.array_equal(one[0], whole[len(ids)]) for one, (_, ids) in zip(found, parts, strict=True)] == [True] * 3
    if kv_dtype == "float32":
        expected = tiny.forward(tiny.Weights(tiny.config(max_position_embeddings=1100)), LONG)
        away = np.abs(whole - expected).max(axis=1)
        assert np.median(away) < 1e-5
        assert (away < 1e-4).mean() > 0.9


def test_halves_in_the_cache_are_rounded_once():
    weights = tiny.Weights(tiny.config())
    logits = tiny.Runner(tiny.Program(tiny.builder(weights), "float16"), 160).alone(IDS)
    away = np.abs(logits - tiny.forward(weights, IDS, kv_dtype="float16")).max(axis=1)
    assert np.median(away) < 1e-5  # where a rounding to half goes the other way, activations may follow
    assert away.max() < 0.5


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_pytorch_tanh"])
def test_each_gate_runs(hidden_act):
    runner = tiny.Runner(tiny.program(tiny.config(hidden_act=hidden_act), "llama"))
    assert np.isfinite(runner.alone(IDS[:20])).all()


# ---- runs


def arguments(runner, **change):
    """A run of three tokens that works, but for what is changed."""
    sequence = runner.sequence()
    sequence.reserve(3)
    given = {"ids": [1, 2, 3], "positions": [0, 1, 2], "sequences": [0, 0, 0], "outputs": [2], **change}
    arrays = {name: np.array(value, np.int32) for name, value in given.items() if name != "pages"}
    return {**arrays, "pages": change.get("pages", [sequence.table])}, sequence


def test_outputs_say_whose_logits_come_and_in_which_order(runner):
    every = runner.alone(IDS[:3])
    for wanted in ([2], [0, 1, 2], [2, 0], [1, 1, 1]):
        given, _sequence = arguments(runner, ids=IDS[:3], outputs=wanted)
        assert (runner.execution.run(**given) == every[wanted]).all()


def test_a_run_without_outputs_fills_the_cache(runner):
    expected = runner.alone(IDS[:100])
    sequence = runner.sequence()
    sequence.reserve(100)
    zeros, none = np.zeros(70, np.int32), np.empty(0, np.int32)
    got = runner.execution.run(IDS[:70], np.arange(70, dtype=np.int32), zeros, [sequence.table], none)
    assert got.shape == (0, 97)
    assert got.dtype == np.float32
    sequence.length = 70
    assert (runner.step([(sequence, IDS[70:100])])[0] == expected[70:]).all()


def test_an_empty_run_gives_nothing(runner):
    none = np.empty(0, np.int32)
    for pages in ([], [np.empty(0, np.uint64)]):
        assert runner.execution.run(none, none, none, pages, none).shape == (0, 97)


def test_an_empty_run_has_no_outputs(runner):
    none = np.empty(0, np.int32)
    with pytest.raises(ShapeError, match="an output's token is 0"):
        runner.execution.run(none, none, none, [], np.zeros(1, np.int32))


def test_pages_that_no_token_needs_may_be_there(runner):
    expected = runner.alone(IDS[:3])
    given, sequence = arguments(runner, ids=IDS[:3], sequences=[1, 1, 1], outputs=[0, 1, 2])
    sequence.reserve(200)
    given["pages"] = [np.empty(0, np.uint64), sequence.table, np.empty(0, np.uint64)]
    assert (runner.execution.run(**given) == expected).all()


REFUSED = [
    ({"ids": [1, 97, 3]}, InferenceError, "token 97 at position 1 is not in the vocabulary of 97"),
    ({"ids": [1, 2, -1]}, InferenceError, "token -1 at position 2 is not in the vocabulary of 97"),
    ({"ids": [2**31 - 1, 2, 3]}, InferenceError, "token 2147483647 at position 0 is not in the vocabulary of 97"),
    ({"positions": [0, 1, -1]}, InferenceError, "position -1 is beyond the 64 tokens of the context"),
    ({"positions": [0, 1, 64]}, InferenceError, "position 64 is beyond the 64 tokens of the context"),
    ({"positions": [0, 1, 2**31 - 1]}, InferenceError, "position 2147483647 is beyond the 64 tokens of the context"),
    ({"pages": [np.empty(0, np.uint64)]}, InferenceError, "position 0 is beyond the 0 tokens of the context"),
    ({"sequences": [0, 0, 1]}, ShapeError, "a sequence's number is 1; the limit is 0 of the pages given"),
    ({"sequences": [0, 0, -1]}, ShapeError, "a sequence's number is -1; the limit is 0 of the pages given"),
    ({"pages": []}, ShapeError, "a sequence's number is 0; the limit is -1 of the pages given"),
    ({"outputs": [3]}, ShapeError, "an output's token is 3; the limit is 2 of the tokens given"),
    ({"outputs": [1, -1]}, ShapeError, "an output's token is -1; the limit is 2 of the tokens given"),
    ({"positions": [0, 1]}, ShapeError, "positions has shape (2,); it must be (3,)"),
    ({"sequences": [0, 0]}, ShapeError, "sequences has shape (2,); it must be (3,)"),
    ({"ids": [[1, 2, 3]]}, ShapeError, "ids has shape (1, 3); it must have shape (tokens,)"),
    ({"outputs": [[1]]}, ShapeError, "outputs has shape (1, 1); it must have shape (outputs,)"),
    ({"pages": [np.zeros(1, np.int64)]}, TypeError,
     "pages has dtype int64; it must be uint64 (convert it with .astype(np.uint64))"),
    ({"pages": [[1]]}, TypeError, "pages must be a NumPy array, not list"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "sentence"), REFUSED, ids=[row[2] for row in REFUSED])
def test_what_cannot_run_is_refused(runner, change, error, sentence):
    given, _sequence = arguments(runner, **change)
    with pytest.raises(error) as caught:
        runner.execution.run(**given)
    assert str(caught.value) == sentence
    assert (runner.alone(IDS[:3]) == runner.alone(IDS[:3], [1, 2])).all()  # and is usable


@pytest.mark.parametrize("name", ["ids", "positions", "sequences", "outputs"])
def test_other_dtypes_are_refused(runner, name):
    given, _sequence = arguments(runner)
    given[name] = given[name].astype(np.int64)
    with pytest.raises(TypeError, match=f"{name} has dtype int64; it must be int32"):
        runner.execution.run(**given)


def test_the_context_ends_inside_a_page(program):
    runner = tiny.Runner(program, 301)
    ids = np.resize(IDS, 301)
    sequence = runner.sequence()
    runner.step([(sequence, ids[:300])])
    with pytest.raises(InferenceError, match=r"^position 300 is beyond the 300 tokens of the context$"):
        runner.step([(sequence, ids[300:])])


def test_more_tokens_than_there_is_memory_for_are_refused(program):
    runner = tiny.Runner(program, 5)
    assert runner.alone(IDS[:5]).shape == (5, 97)
    with pytest.raises(InferenceError, match=r"^a run of 6 tokens was asked for; this execution has memory for 5$"):
        runner.alone(IDS[:6])


@pytest.mark.parametrize("max_tokens", [-1, 1 << 62])
def test_an_execution_of_impossible_size_is_refused(program, max_tokens):
    with pytest.raises(MemoryError, match="cannot allocate"):
        Execution(program, max_tokens)


# ---- cancel


@pytest.mark.parametrize("is_observed", [False, True])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_another_thread_can_cancel_a_run(runner, num_threads, is_observed):
    expected = runner.alone(IDS)
    runner.execution.observer = (lambda *_: False) if is_observed else None
    is_over = threading.Event()

    def cancel():
        while not is_over.wait(1e-4):
            runner.execution.cancel()

    def run():
        for _ in range(100_000):
            runner.alone(IDS, num_threads=num_threads)

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        with pytest.raises(InferenceError, match=r"^the run was cancelled before the operation '(.+)'$") as caught:
            run()
    finally:
        is_over.set()
        thread.join()
    assert caught.value.facts["operation"] in runner.program.names
    runner.execution.forget_cancel()  # the last one may have come after that run
    assert (runner.alone(IDS) == expected).all()


def test_a_cancel_without_a_run_stops_the_next_one(runner):
    runner.execution.cancel()
    with pytest.raises(InferenceError, match=r"cancelled before the operation 'model.embed_tokens'$"):
        runner.alone(IDS[:5])
    assert runner.alone(IDS[:5]).shape == (5, 97)


def test_a_cancel_can_be_forgotten(runner):
    runner.execution.cancel()
    runner.execution.forget_cancel()
    assert runner.alone(IDS[:5]).shape == (5, 97)


# ---- memory


def test_nothing_leaks():
    gc.collect()
    before = memory.statistics()
    runner = tiny.Runner(tiny.program())
    runner.alone(IDS, [64, 64, 22])
    runner.execution.observer = lambda *_: False
    runner.alone(IDS[:10])
    runner.execution.observer = None
    for change in ({"ids": [1, 97, 3]}, {"positions": [0, 1, 64]}, {"sequences": [0, 0, 1]}, {"outputs": [3]}):
        given, _sequence = arguments(runner, **change)
        with pytest.raises((InferenceError, ShapeError)):
            runner.execution.run(**given)
    assert memory.statistics()["live_bytes"] > before["live_bytes"]
    with pytest.raises(ModelLoadError):
        tiny.program(change={"lm_head": cut})
    del runner, given, _sequence
    gc.collect()
    after = memory.statistics()
    assert (after["live_blocks"], after["live_bytes"]) == (before["live_blocks"], before["live_bytes"])


def test_a_run_allocates_no_blocks(runner):
    runner.alone(IDS)
    before = memory.statistics()["total_blocks"]
    for num_threads in (1, 2):
        runner.alone(IDS, [1, 100, 49], num_threads)
    assert memory.statistics()["total_blocks"] == before


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("width", [40, 5002])  # of less than what is read at once, and of more
def test_a_table_in_a_file_gives_the_same_rows(dtype, width, tmp_path):
    cfg = tiny.config(hidden_size=width, num_hidden_layers=1, intermediate_size=8)
    numbers = tiny.Weights(cfg).table("model.embed_tokens")
    stored = numbers if dtype == "float32" else numbers.astype(np.float16).view(np.uint16)
    (tmp_path / "table").write_bytes(b"odd" + stored.tobytes())
    found = []
    with open(tmp_path / "table", "rb", buffering=0) as file:
        for table in (stored, TableInFile(file, 3, stored.shape, dtype)):
            weights = tiny.Weights(cfg)
            weights.embedding = lambda name, table=table: (table, dtype)
            found.append(tiny.Runner(Program(tiny.builder(weights))).alone([5, 96, 5, 0]))
    np.testing.assert_array_equal(*found)
