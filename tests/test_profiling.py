"""Profiles: what they add up, write and draw."""

import itertools
import json
import sys

import pytest
from checkpoints import DATA

import bitnet
from bitnet import machine, steps

PROMPT = list(range(1, 41))
BESIDES = ("engine: gather", "engine: enter", "engine: choose", "engine: hand out", "profile: recording")


@pytest.fixture(scope="module")
def model():
    with bitnet.load(DATA / "bitnet-packed-auto", num_threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def found(model):
    with bitnet.profile() as p:
        model.generate(PROMPT, max_new_tokens=4, eos_token_id=())
    return p


@pytest.fixture
def limits(monkeypatch):
    """Limits that take no time to measure."""

    class Buffer:
        def __init__(self, nbytes):
            pass

        def read(self, threads):
            return 20e9

    monkeypatch.setattr(machine, "ReadBandwidth", Buffer)
    monkeypatch.setattr(machine, "multiply_peak", lambda threads: 100e9)


def test_it_explains_the_time_of_the_runs(found, model):
    assert (found.runs, found.tokens) == (4, 40 + 3)
    rows = found.operations()
    program = model.model.program
    assert {row.name for row in rows} == {*program.names, "run: checks", "run: results", *BESIDES}
    assert all(row.calls == 4 for row in rows)
    assert sum(row.seconds for row in rows if row.name not in BESIDES) == pytest.approx(found.run_seconds)
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert 0 < found.run_seconds <= found.step_seconds <= found.wall_seconds
    assert [row.seconds for row in rows] == sorted((row.seconds for row in rows), reverse=True)


DRAWN = {"max_new_tokens": 9, "eos_token_id": (), "do_sample": True, "top_p": 0.9, "seed": 1}
ASKED = {
    "logits": lambda model: model.infer(PROMPT),
    "an answer": lambda model: model.generate(PROMPT, **DRAWN),
    "a stream": lambda model: list(model.stream(PROMPT, **DRAWN)),
    "answers together": lambda model: model.generate([PROMPT, PROMPT[3:], PROMPT[5:]] * 3, **DRAWN),
}


@pytest.mark.parametrize("name", ASKED)
def test_the_parts_are_the_steps_and_the_steps_are_most_of_the_wall_time(model, name):
    began, spent = [], []

    def see(start_ns, laps):
        began.append(start_ns)
        spent.append(dict(laps))

    steps.add_recorder(see)
    try:
        with bitnet.profile() as p:
            ASKED[name](model)
    finally:
        steps.remove_recorder(see)
    assert len(spent) == p.runs
    assert all(set(one) == {"gather", "run", "choose", "hand out"} and min(one.values()) >= 0 for one in spent)
    total = sum(sum(one.values()) for one in spent) / 1e9
    assert p.step_seconds == pytest.approx(total)
    assert sum(row.seconds for row in p.operations()) == pytest.approx(total)
    # Few of them, and small ones: what is between steps, as Python's calls, counts; and machines stall.
    assert 0.3 * p.wall_seconds < total <= p.wall_seconds
    choose = next(row.seconds for row in p.operations() if row.name == "engine: choose")
    assert (choose > 0) == (name != "logits")
    assert all(row.seconds >= 0 for row in p.operations())


def test_what_is_recorded_ends_with_the_profile(model):
    with bitnet.profile():
        pass
    assert not steps.is_recorded()
    model.infer([1, 2])
    request = []
    model.generate([1, 2], max_new_tokens=2, logits_processor=lambda ids, logits: request.append(len(ids)))
    assert request


def test_work_is_counted_by_operation(found, model):
    config = model.model.config
    rows = {row.name: row for row in found.operations()}
    down = rows["model.layers.0.mlp.down_proj"]
    assert down.macs == 43 * config.hidden_size * config.intermediate_size
    assert down.bytes >= 4 * config.hidden_size * config.intermediate_size * 1.6 / 8
    assert rows["lm_head"].macs == 4 * config.vocab_size * config.hidden_size
    assert down.macs_per_s == down.macs / down.seconds
    assert down.bytes_per_s == down.bytes / down.seconds


def test_groups(found, model):
    kinds = {row.name: row for row in found.operations("kind")}
    assert set(kinds) == {*model.model.program.kinds, "overhead", "engine", "profile"}
    assert kinds["linear"].calls == 4 * model.model.program.kinds.count("linear")
    layers = {row.name: row for row in found.operations("layer")}
    assert {f"model.layers.{i}" for i in range(4)} <= set(layers)
    assert layers["model.layers.2"].kind.endswith(" kinds")
    assert layers["lm_head"].kind == "head"
    for rows in (kinds, layers):
        assert sum(row.seconds for row in rows.values()) == pytest.approx(found.step_seconds)
    with pytest.raises(bitnet.ConfigurationError, match="by is 'colour'; it must be one of 'operation', 'kind'"):
        found.operations("colour")


def test_the_table(found, limits):
    table = found.table("kind")
    lines = table.splitlines()
    assert lines[0].split()[:4] == ["time", "share", "calls", "us/call"]
    assert lines[-1].startswith("4 runs of 43 tokens, ")
    assert lines[-1].endswith("1 threads; limits 20.0 GB/s, 100 GMAC/s")
    assert ["linear", "linear"] in [line.split()[-2:] for line in lines]
    assert "... and " in found.table(limit=3)
    assert len(found.table(limit=None).splitlines()) == len(found.operations()) + 2


def test_a_profile_of_nothing():
    with bitnet.profile() as p:
        pass
    assert (p.runs, p.operations(), p.table()) == (0, [], "no run of a model was measured")


def test_the_chrome_trace(found, tmp_path, model):
    path = tmp_path / "trace.json"
    found.to_chrome_trace(path)
    events = json.loads(path.read_text())["traceEvents"]
    runs = [event for event in events if event["cat"] == "run"]
    assert [event["args"]["tokens"] for event in runs] == [40, 1, 1, 1]
    assert len(events) == 4 * (3 + len(model.model.program.names)) + 4 * 4
    whole = [event for event in events if event["cat"] == "step"]
    assert [event["name"] for event in whole] == ["step 0", "step 1", "step 2", "step 3"]
    for step, run in zip(whole, runs, strict=True):
        end = step["ts"] + step["dur"]
        within = [event for event in events if event["cat"] == "engine" and step["ts"] <= event["ts"] <= end]
        assert [event["name"] for event in within[:3]] == ["engine: gather", "engine: choose", "engine: hand out"]
        assert within[0]["ts"] + within[0]["dur"] <= run["ts"] <= run["ts"] + run["dur"] <= within[1]["ts"]
    for before, after in itertools.pairwise(runs):
        assert before["ts"] + before["dur"] <= after["ts"]
    end = runs[0]["ts"] + runs[0]["dur"]
    first = [event for event in events if runs[0]["ts"] <= event["ts"] < end and event["cat"] not in ("run", "engine")]
    assert sum(event["dur"] for event in first) == pytest.approx(runs[0]["dur"])
    assert all(0 < event["tid"] < 1 << 32 and 0 < event["pid"] < 1 << 32 for event in events)
    assert all(set(event) == {"ph", "pid", "tid", "name", "cat", "ts", "dur", "args"} for event in events)


def test_the_plot(found, tmp_path):
    pytest.importorskip("matplotlib")
    found.plot(tmp_path / "profile.svg", "layer")
    assert "model.layers.0" in (tmp_path / "profile.svg").read_text()


def test_the_plot_names_the_extra_that_is_missing(found, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(bitnet.DeviceError, match=r"run: pip install 'bitnet-runtime\[plot\]'"):
        found.plot(tmp_path / "profile.svg")


def test_profiles_may_overlap_and_end(model):
    with bitnet.profile() as outer:
        model.infer([1, 2])
        with bitnet.profile() as inner:
            model.infer([3])
    model.infer([4])
    assert (outer.runs, outer.tokens) == (2, 3)
    assert (inner.runs, inner.tokens) == (1, 1)
    assert inner.wall_seconds < outer.wall_seconds
