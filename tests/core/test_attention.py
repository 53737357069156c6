"""What attention makes of the queries, keys and values that it is given, against NumPy in float64."""

import numpy as np
import pytest
import tiny

from bitnet.errors import InferenceError

IDS = np.random.default_rng(3).integers(0, 97, 330).astype(np.int32)
# Of the largest value: products in float32; and for bytes two numbers of 14 bits, whose halves of a step are 2^-15.
BOUNDS = {"float32": 2e-6, "float16": 2e-6, "int8": 2e-4}


def seen(runner, chunks):
    """The input of the first layer's attention, after the rotation, and its output, of a run in chunks."""
    index, found = runner.program.names.index("model.layers.0.self_attn"), []

    def look(at, made, source):
        if at == index:
            found.append((source, made))

    runner.execution.observer = look
    try:
        runner.alone(IDS[: sum(chunks)], chunks)
    finally:
        runner.execution.observer = None
    return (np.concatenate(one).astype(np.float64) for one in zip(*found, strict=True))


def kept(x, kv_dtype):
    """As the cache keeps it, (tokens, heads, width)."""
    if kv_dtype != "int8":
        return x.astype(kv_dtype).astype(np.float64)
    x = x.astype(np.float32)  # as the core rounds: a tie is one step
    largest = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-30))
    return np.rint(x * (np.float32(127) / largest)).astype(np.float64) * (largest / np.float32(127))


def attend(qkv, cfg, kv_dtype):
    heads, keys, dim, tokens = cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim, len(qkv)
    q, k, v = np.split(qkv.reshape(tokens, -1, dim), [heads, heads + keys], axis=1)
    k, v = (np.repeat(kept(one, kv_dtype), heads // keys, 1) for one in (k, v))
    scores = np.einsum("ahd,bhd->hab", q, k) / np.sqrt(dim)
    scores[:, ~np.tri(tokens, dtype=bool)] = -np.inf
    power = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hab,bhd->ahd", power / power.sum(-1, keepdims=True), v).reshape(tokens, -1)


@pytest.mark.parametrize("kv_dtype", BOUNDS)
@pytest.mark.parametrize("head_dim", [2, 22, 64, 84, 130])
@pytest.mark.parametrize(("heads", "keys"), [(4, 2), (5, 1), (3, 3)])
def test_attention_is_that_of_numpy(isa, kv_dtype, head_dim, heads, keys):
    """One query, or up to five, share keys; heads end within a vector or not; a last block is whole, and not."""
    cfg = tiny.config(head_dim=head_dim, num_attention_heads=heads, num_key_value_heads=keys, num_hidden_layers=1,
                      max_position_embeddings=330)
    runner = tiny.Runner(tiny.program(cfg, kv_dtype=kv_dtype), 330)
    for chunks in ([330], [65, 1, 62, 1]):
        qkv, made = seen(runner, chunks)
        expected = attend(qkv, cfg, kv_dtype)
        assert np.abs(made - expected).max() <= BOUNDS[kv_dtype] * np.abs(expected).max()


def test_where_one_position_takes_nearly_all_others_keep_their_share(isa):
    """Weights are rounded relative to the largest of a block."""
    cfg = tiny.config(num_hidden_layers=1)
    # Scores are 16 times as large.
    louder = {"model.layers.0.input_layernorm.weight": lambda gain: 4 * gain}
    runner = tiny.Runner(tiny.program(cfg, kv_dtype="int8", change=louder), 330)
    qkv, made = seen(runner, [128])
    expected, shares = attend(qkv, cfg, "int8"), []
    q, k = qkv[:, : 4 * 22].reshape(-1, 4, 22), qkv[:, 4 * 22 : 6 * 22].reshape(-1, 2, 22)
    for token in range(128):
        scores = np.einsum("hd,bhd->hb", q[token], np.repeat(k[: token + 1], 2, 1)) / np.sqrt(22)
        power = np.exp(scores - scores.max(-1, keepdims=True))
        shares.append((power / power.sum(-1, keepdims=True)).max(-1))
    is_peaked = np.array(shares) > 0.9
    assert 20 < is_peaked.sum() < 400
    away = np.abs(made - expected).reshape(128, 4, 22).max(-1)
    assert away[is_peaked].max() <= BOUNDS["int8"] * np.abs(expected).max()


@pytest.mark.parametrize("kv_dtype", BOUNDS)
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_key_that_is_not_finite_fails_the_run(isa, kv_dtype, number):
    """Bytes have none: it must not become a number."""

    def spoil(gain):
        gain[3] = number
        return gain

    spoilt = {"model.layers.0.self_attn.k_norm.weight": spoil}
    runner = tiny.Runner(tiny.program(family="qwen3", kv_dtype=kv_dtype, change=spoilt), 330)
    with pytest.raises(InferenceError, match="not finite"):
        runner.alone(IDS[:70])


def test_keys_and_values_may_be_too_small_for_a_reciprocal(isa):
    quiet = {"model.layers.0.input_layernorm.weight": lambda gain: np.float32(1e-38) * gain}
    runner = tiny.Runner(tiny.program(kv_dtype="int8", change=quiet), 330)
    assert np.isfinite(runner.alone(IDS[:70])).all()
