"""Looking at the runs of a program: recorders of times, observers of numbers, and errors that name what met a NaN."""

import re
import time

import numpy as np
import pytest
import tiny

from bitnet._core.program import add_recorder, remove_recorder
from bitnet.errors import InferenceError, KernelError

IDS = np.random.default_rng(7).integers(0, 97, 150).astype(np.int32)
AT = "model.layers.1."


@pytest.fixture
def runner():
    return tiny.Runner(tiny.program(), 160)


def observed(runner, ids):
    """Run some tokens; what each operation made and read, by name."""
    seen = {}

    def look(index, values, inputs):
        seen[runner.program.names[index]] = values, inputs

    runner.execution.observer = look
    try:
        return runner.alone(ids), seen
    finally:
        runner.execution.observer = None


def test_recorders_are_told_the_time_of_each_operation(runner):
    expected = runner.alone(IDS)
    runs, others = [], []
    add_recorder(others.append)
    add_recorder(lambda *run: None)
    remove_recorder(others.append)
    recorder = runs.append

    def record(*run):
        recorder(run)

    add_recorder(record)
    try:
        assert (runner.alone(IDS) == expected).all()
        runner.alone(IDS[:7], [5, 2], num_threads=2)
    finally:
        remove_recorder(record)
    runner.alone(IDS[:3])
    assert (len(runs), others) == (3, [])
    program, start_ns, times, tokens, outputs, attended, read, threads, within = runs[0]
    assert program is runner.program
    assert 0 < start_ns <= time.monotonic_ns()
    assert len(times) == len(program.names) + 2
    assert (times >= 0).all()
    assert 0 < times.sum() < 60e9
    assert (tokens, outputs, attended, threads) == (len(IDS), len(IDS), sum(range(1, len(IDS) + 1)), 1)
    assert len(IDS) <= read <= attended
    assert within == {}
    assert runs[2][3:6] == (2, 2, 6 + 7)
    assert runs[2][7] == 2


def test_work_is_counted(runner):
    program, config = runner.program, tiny.config()
    nbytes, macs = program.work(3, 2, 10, 10)
    kinds = list(program.kinds)
    assert macs[kinds.index("linear")] == 3 * config.hidden_size * (
        (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim)  # fmt: skip
    assert macs[-1] == 2 * config.vocab_size * config.hidden_size
    assert nbytes[-1] == config.vocab_size * config.hidden_size * 4
    at = kinds.index("attention")
    assert macs[at] == 2 * 10 * config.num_attention_heads * config.head_dim
    assert nbytes[at] == 2 * 10 * config.num_key_value_heads * config.head_dim * 4
    assert (nbytes[kinds.index("embed")], macs[0]) == (3 * config.hidden_size * 4, 0)
    assert program.work(3, 0, 10, 10)[1][-1] == 0


def test_an_observer_sees_what_each_operation_made(runner):
    expected = runner.alone(IDS)
    logits, seen = observed(runner, IDS)
    assert (logits == expected).all()
    assert tuple(seen) == runner.program.names
    table = tiny.Weights(tiny.config()).table("model.embed_tokens")[IDS]
    values, inputs = seen["model.embed_tokens"]
    assert (values == table).all()
    assert inputs is None
    values, inputs = seen["lm_head"]
    assert (values == expected).all()
    assert (inputs == seen["model.norm"][0]).all()
    assert all(np.isfinite(values).all() for values, _ in seen.values())
    assert seen["model.layers.0.self_attn.rope"][1] is None


def test_an_observer_can_end_a_run(runner):
    seen = []

    def look(index, values, inputs):
        seen.append(index)
        return index == 2

    expected = runner.alone(IDS[:5])
    sequence = runner.sequence()
    sequence.reserve(1)
    zero = np.zeros(1, np.int32)
    runner.execution.observer = look
    assert runner.execution.run(zero, zero, zero, [sequence.table], zero) is None
    assert seen == [0, 1, 2]
    runner.execution.observer = None
    assert (runner.alone(IDS[:5]) == expected).all()


def plant(gain):
    gain[3] = np.nan
    return gain


@pytest.mark.parametrize(("name", "noticed"), [
    ("model.layers.0.input_layernorm", "model.layers.0.self_attn.q_proj+model.layers.0.self_attn.k_proj+"
                                       "model.layers.0.self_attn.v_proj"),
    (AT + "self_attn.attn_sub_norm", AT + "self_attn.o_proj"),
    (AT + "post_attention_layernorm", f"{AT}mlp.gate_proj+{AT}mlp.up_proj"),
    (AT + "mlp.ffn_sub_norm", AT + "mlp.down_proj"),
])  # fmt: skip
def test_the_error_of_a_nan_names_what_met_it_and_the_kernel(isa, name, noticed):
    runner = tiny.Runner(tiny.program(change={name + ".weight": plant}))
    with pytest.raises(InferenceError) as caught:
        runner.alone(IDS[:20])
    assert str(caught.value) == (
        f"the input of '{noticed}' has a number that is not finite; diagnosis shows where it began"
    )
    cause = caught.value.chain()[1]
    assert isinstance(cause, KernelError)
    sentence = rf"kernel '\w+-\w+' ended '{re.escape(noticed)}' with status 1: its input is not finite"
    assert re.fullmatch(sentence, str(cause))


def test_the_error_of_a_nan_in_the_last_norm():
    runner = tiny.Runner(tiny.program(change={"model.norm.weight": plant}))
    with pytest.raises(InferenceError, match="the input of 'lm_head' has a number that is not finite"):
        runner.alone(IDS[:20])
