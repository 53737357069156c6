"""A token's logits are the same bits alone and in any batch, in any cutting of the prompt, on any number of threads."""

import functools

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

LONG = 150  # tokens of the longest sequence: two pages of 64, and a part of one
KV_DTYPES = ("float32", "float16", "int8")
HEAD_DTYPES = ("int8", "float16", "bfloat16", "float32")
FAMILIES = {"bitnet": "relu2", "llama": "silu", "gemma3_text": "gelu_pytorch_tanh"}
PROMPTS = np.random.default_rng(3).integers(0, 97, (3, 200)).astype(np.int32)

each_kv_dtype = pytest.mark.parametrize("kv_dtype", KV_DTYPES)
each_head_dtype = pytest.mark.parametrize("head_dtype", HEAD_DTYPES)
each_family = pytest.mark.parametrize("family", FAMILIES)


@functools.cache
def runner(family, kv_dtype, head_dtype, kind="i2"):
    layers = {"layer_thetas": [1e4, 1e6], "layer_windows": [37, None]} if family == "gemma3_text" else {}
    cfg = tiny.config(hidden_act=FAMILIES[family], extra=layers)
    own_norms = () if family == "bitnet" else ("v_proj", "down_proj")
    program = tiny.program(cfg, family, kv_dtype, head_dtype=head_dtype, kind=kind, own_norms=own_norms)
    return tiny.Runner(program, 3 * 200)


@functools.cache
def expected(which, *model):
    """The logits of a prompt, alone, at once, on one thread."""
    return runner(*model).alone(PROMPTS[which])


def same(logits, wanted):
    """Whether all bits are equal, signs of zeros included."""
    return logits.tobytes() == np.ascontiguousarray(wanted).tobytes()


# ---- any chunking


@st.composite
def chunkings(draw, most=LONG):
    """Sizes of chunks with a sum of 1 to `most`; they like to end near the ends of pages."""
    size = st.one_of(st.integers(1, 5), st.integers(1, most), st.sampled_from([63, 64, 65, 128]))
    chunks, left = [], draw(st.integers(1, most))
    while left:
        chunks.append(min(left, draw(size)))
        left -= chunks[-1]
    return chunks


@each_family
@each_head_dtype
@each_kv_dtype
@settings(max_examples=6)
@given(chunks=chunkings(), num_threads=st.integers(1, 4))
def test_any_chunking_gives_the_same_bits(family, kv_dtype, head_dtype, chunks, num_threads):
    model = (family, kv_dtype, head_dtype)
    total = sum(chunks)
    logits = runner(*model).alone(PROMPTS[0][:total], chunks, num_threads)
    assert same(logits, expected(0, *model)[:total])


@each_head_dtype
@each_kv_dtype
def test_token_by_token_gives_the_same_bits(isa, packing, kv_dtype, head_dtype):
    model = ("bitnet", kv_dtype, head_dtype, packing)
    assert same(runner(*model).alone(PROMPTS[0], [1] * 200, 2), expected(0, "bitnet", kv_dtype, head_dtype))


@pytest.mark.parametrize("num_threads", [2, 3, 4, 9])
@each_head_dtype
@each_kv_dtype
def test_any_number_of_threads_gives_the_same_bits(isa, kv_dtype, head_dtype, num_threads):
    model = ("bitnet", kv_dtype, head_dtype)
    assert same(runner(*model).alone(PROMPTS[0], None, num_threads), expected(0, *model))


@each_family
@each_head_dtype
@each_kv_dtype
def test_any_instruction_set_and_packing_give_the_same_bits(isa, packing, family, kv_dtype, head_dtype):
    logits = runner(family, kv_dtype, head_dtype, packing).alone(PROMPTS[1])
    assert same(logits, expected(1, family, kv_dtype, head_dtype))


# ---- any batch


@each_family
@each_head_dtype
@each_kv_dtype
@settings(max_examples=6)
@given(
    plans=st.lists(chunkings(), min_size=3, max_size=3),
    num_threads=st.integers(1, 4),
    order=st.randoms(use_true_random=False),
)
def test_any_ragged_batch_gives_the_same_bits(family, kv_dtype, head_dtype, plans, num_threads, order):
    # In each run some of the sequences go on by their next chunk; their tokens are mixed.
    model, shuffle = (family, kv_dtype, head_dtype), np.random.default_rng(order.randrange(2**32))
    ours = runner(*model)
    sequences, found, done = [ours.sequence() for _ in plans], [[], [], []], [0, 0, 0]
    while any(plans):
        waiting = [i for i, chunks in enumerate(plans) if chunks]
        chosen = order.sample(waiting, order.randint(1, len(waiting)))
        parts = []
        for i in chosen:
            size = plans[i].pop(0)
            parts.append((sequences[i], PROMPTS[i][done[i] : done[i] + size]))
            done[i] += size
        for i, logits in zip(chosen, ours.step(parts, num_threads, shuffle), strict=True):
            found[i].append(logits)
    for which, (sequence, logits) in enumerate(zip(sequences, found, strict=True)):
        assert same(np.concatenate(logits), expected(which, *model)[: done[which]])
        sequence.close()


@each_head_dtype
@each_kv_dtype
def test_a_sequence_beside_itself_gives_the_same_bits_twice(isa, kv_dtype, head_dtype):
    ours = runner("bitnet", kv_dtype, head_dtype)
    pair = [ours.sequence(), ours.sequence()]
    logits = ours.step([(sequence, PROMPTS[2][:LONG]) for sequence in pair], 2)
    for sequence, one in zip(pair, logits, strict=True):
        assert same(one, expected(2, "bitnet", kv_dtype, head_dtype)[:LONG])
        sequence.close()


@each_head_dtype
@each_kv_dtype
def test_logits_do_not_depend_on_what_else_is_asked_for(kv_dtype, head_dtype):
    ours = runner("bitnet", kv_dtype, head_dtype)
    ids, positions, zeros = PROMPTS[0], np.arange(200, dtype=np.int32), np.zeros(200, np.int32)
    sequence = ours.sequence()
    sequence.reserve(200)
    for wanted in ([199], [3, 70, 199], list(range(0, 200, 7))):
        outputs = np.array(wanted, np.int32)
        for num_threads in (1, 3):
            logits = ours.execution.run(ids, positions, zeros, [sequence.table], outputs, num_threads)
            assert same(logits, expected(0, "bitnet", kv_dtype, head_dtype)[wanted])
    sequence.close()


@each_kv_dtype
def test_what_a_page_held_before_does_not_matter(kv_dtype):
    ours = tiny.Runner(tiny.program(kv_dtype=kv_dtype), 200)
    clean = ours.alone(PROMPTS[0][:100])
    taken = [ours.cache.take() for _ in range(3)]
    for page in taken:
        np.frombuffer(page.block, np.uint8)[:] = 0xFF  # NaN, in both dtypes
        ours.cache.give(page)
    assert same(ours.alone(PROMPTS[0][:100]), clean)


# ---- the invariance is one of many numbers


def test_other_tokens_give_other_logits():
    # So the tests above compare something: the last token sees the first one, two pages before.
    changed = PROMPTS[0].copy()
    changed[0] += 1
    model = ("bitnet", "float16", "int8")
    assert not same(runner(*model).alone(changed)[-1], expected(0, *model)[-1])


@each_family
def test_by_how_much_the_defaults_differ_from_float32(record_property, family):
    exact = expected(0, family, "float32", "float32").astype(np.float64)
    # Root mean square of the difference, relative to that of the logits. A half is 2^-12 off, and some activations
    # round to another of 255 steps for it; a row of the head, a key or a value in int8 is off by a 250th of its largest
    # number.
    for kv_dtype, head_dtype, bound in (
        ("float32", "bfloat16", 0.01), ("float32", "float16", 1e-3), ("float32", "int8", 0.02),
        ("float16", "float32", 0.05), ("float16", "int8", 0.05), ("int8", "float32", 0.1),
    ):  # fmt: skip
        logits = expected(0, family, kv_dtype, head_dtype)
        distance = float(np.sqrt(np.mean((logits - exact) ** 2) / np.mean(exact**2)))
        record_property(f"{kv_dtype} {head_dtype}", distance)
        assert 0 < distance < bound
