"""Debug mode, traces, times and logs; and errors that tell the layers they passed."""

import io
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import DATA

import bitnet
from bitnet.debugging import TRACE, is_debugging, start_from_environment
from bitnet.errors import BitNetError, ErrorContext, InferenceError, KernelError


@pytest.fixture(autouse=True)
def pristine():
    """Nothing set from outside, and all as before afterwards."""
    from bitnet import debugging

    root, depth, writers = logging.getLogger("bitnet"), debugging._depth, debugging._writers
    level, handlers = root.level, list(root.handlers)
    debugging._depth = 0
    yield
    debugging._depth, debugging._writers = depth, writers
    debugging._trace_operations(-debugging._tracers)
    root.setLevel(level)
    root.handlers[:] = handlers


def messages(caplog):
    return [record.getMessage() for record in caplog.records]


# ---- times


def test_a_function_is_timed_and_its_result_returned(caplog):
    with caplog.at_level(logging.WARNING):
        assert bitnet.time_operation("quick", sum, [1, 2], start=3) == 6
        assert bitnet.time_operation("slow", lambda: 5, threshold_s=0) == 5
    assert len(messages(caplog)) == 1
    assert messages(caplog)[0].startswith("slow operation slow: 0.")
    assert caplog.records[0].name == "bitnet.debugging"


def test_a_block_is_timed(caplog):
    with caplog.at_level(logging.DEBUG), bitnet.time_operation("outer") as timed:
        assert timed.seconds == 0
    assert timed.seconds > 0
    assert messages(caplog) == [f"operation outer: {timed.seconds * 1e3:.3f} ms"]


def test_a_decorated_function_is_timed_at_every_call(caplog):
    @bitnet.time_operation("count", threshold_s=0)
    def count(n):
        """Call itself."""
        return n if n == 0 else count(n - 1) + 1

    assert count.__doc__ == "Call itself."
    assert count(2) == 2
    assert len(messages(caplog)) == 3
    with pytest.raises(TypeError), caplog.at_level(logging.WARNING):
        count(None)
    assert messages(caplog)[-1].endswith("ms (ended by TypeError)")


# ---- the example

EXAMPLE = """\
bytes left: 32768
2 live blocks, 3 B
  1 B for cache, 0.0
in <module>
      cache = [pool.allocate(1 << n, tag="cache") for n in range(3)]
other: cannot multiply a 256 x 256 ternary weight: the weight has 256 columns, the input 255
quantisation: x has inf at index (0); only finite numbers can be quantised
memory: cannot allocate 977 KiB for a block: 0 B of the pool's limit of 1000 B are in use; free some, or raise the limit
device: the accelerator is gone
  because of: the bus does not answer
DeviceError [error]
during example: a device of your own
  rows: 256
  at {path}:
raised at {path}:
caused by OSError: the bus does not answer
sum 499500, product in"""


def test_what_the_example_says():
    path = Path(bitnet.__file__).parents[1] / "examples" / "debugging.py"
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True)
    at = 0
    for line in EXAMPLE.format(path=path).splitlines():  # in this order, with others between them
        assert line in done.stdout[at:], line
        at = done.stdout.index(line, at) + len(line)
    told = done.stderr.splitlines()
    assert len(told) == 3
    assert all(line.startswith("WARNING slow operation ") for line in told[:2])
    assert told[2].endswith(" the largest code is 127")  # once: where logging is set up already, nothing is said twice


# ---- traces


def test_a_trace_is_off_until_debugging(caplog, capsys):
    with caplog.at_level(TRACE):
        bitnet.debug_trace("never %s", pytest.fail, x=pytest.fail)
        assert (messages(caplog), is_debugging()) == ([], False)
        with bitnet.debug():
            assert is_debugging()
            bitnet.debug_trace("%s of %d", lambda: "some", 5, shape=lambda: (2, 3), name="a")
            bitnet.debug_trace("100 % plain")
        bitnet.debug_trace("never")
    line = sys._getframe().f_lineno - 3
    assert messages(caplog) == [f"test_debugging.py:{line} some of 5 (shape=(2, 3), name='a')",
                                f"test_debugging.py:{line + 1} 100 % plain"]  # fmt: skip
    assert capsys.readouterr().err.startswith(f"DEBUG bitnet.debugging: test_debugging.py:{line} some of 5")


def test_what_is_logged_to_standard_error_anyway_is_not_said_twice(capsys):
    root = logging.getLogger()
    theirs = logging.StreamHandler(sys.stderr)
    theirs.setFormatter(logging.Formatter("theirs: %(message)s"))
    root.addHandler(theirs)
    try:
        with bitnet.debug():
            bitnet.debug_trace("once")
            theirs.setLevel(logging.WARNING)
            bitnet.debug_trace("by us")
            logging.getLogger("bitnet.engine").warning("by them")
    finally:
        root.removeHandler(theirs)
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said] == ["theirs", "DEBUG bitnet.debugging", "theirs"]


def test_debug_mode_notes_tracebacks_and_ends(capsys):
    pool = bitnet.HybridMemoryPool.instance()
    root = logging.getLogger("bitnet")
    before = (pool.tracking, root.level, list(root.handlers))
    with bitnet.debug("trace"):
        assert (pool.tracking, root.level) == ("tracebacks", TRACE)
        with bitnet.debug("error"):
            logging.getLogger("bitnet.engine").warning("not so grave")
    assert (pool.tracking, root.level, list(root.handlers)) == before
    assert capsys.readouterr().err == ""
    with pytest.raises(bitnet.ConfigurationError, match="level is 'loud'; it must be one of"), bitnet.debug("loud"):
        pass


def test_debug_within_debug_says_all_once(capsys):
    start_from_environment({"BITNET_DEBUG": "1"})
    with bitnet.debug(), bitnet.debug():
        bitnet.debug_trace("a")
    bitnet.debug_trace("b")
    assert [line[-1] for line in capsys.readouterr().err.splitlines()] == ["a", "b"]


def test_debug_modes_may_end_in_any_order():
    root = logging.getLogger("bitnet")
    before = root.level
    first, second = bitnet.debug("debug"), bitnet.debug("trace")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert (root.level, is_debugging(), bitnet.HybridMemoryPool.instance().tracking) == (TRACE, True, "tracebacks")
    second.__exit__(None, None, None)
    assert (root.level, is_debugging(), bitnet.HybridMemoryPool.instance().tracking) == (before, False, "off")


# ---- from outside


@pytest.mark.parametrize(
    ("environment", "level", "is_on"),
    [({}, logging.NOTSET, False), ({"BITNET_DEBUG": "0"}, logging.NOTSET, False),
     ({"BITNET_DEBUG": "1"}, logging.DEBUG, True), ({"BITNET_LOG": "trace"}, TRACE, False),
     ({"BITNET_LOG": "INFO", "BITNET_DEBUG": "1"}, logging.INFO, True)],
)  # fmt: skip
def test_the_environment_is_obeyed(environment, level, is_on):
    root = logging.getLogger("bitnet")
    root.setLevel(logging.NOTSET)
    start_from_environment(environment)
    assert (root.level, is_debugging()) == (level, is_on)


def test_a_level_that_is_none_is_warned_of():
    with pytest.warns(RuntimeWarning, match="BITNET_LOG is 'loud'; it must be one of .*; it is taken for 'debug'"):
        start_from_environment({"BITNET_LOG": "loud"})
    assert logging.getLogger("bitnet").level == logging.DEBUG


def in_process(code, **environment):
    settings = ("BITNET_DEBUG", "BITNET_LOG", "BITNET_MEMORY_PROFILING")
    environ = {name: value for name, value in os.environ.items() if name not in settings}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(bitnet.__file__).parents[1], env={**environ, **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr


SPEAK = (
    "import bitnet, logging; logging.getLogger('bitnet.engine').error('grave'); bitnet.debug_trace('traced'); "
    "pool = bitnet.HybridMemoryPool.instance(); print(pool.tracking, pool.has_guards)"
)


def test_a_process_is_quiet_by_default():
    output, complaints = in_process(SPEAK)
    assert complaints == ""
    assert output.startswith("off ")


def test_a_process_can_be_made_to_speak():
    output, complaints = in_process(SPEAK, BITNET_DEBUG="1", BITNET_MEMORY_PROFILING="counts")
    assert output == "counts True\n"
    assert complaints == "ERROR bitnet.engine: grave\nDEBUG bitnet.debugging: <string>:1 traced\n"
    output, complaints = in_process(SPEAK, BITNET_LOG="warning", BITNET_MEMORY_PROFILING="1")
    assert complaints == "ERROR bitnet.engine: grave\n"
    assert output.startswith("tracebacks ")


def test_the_log_tells_what_an_engine_does(caplog):
    config = bitnet.GenerationConfig(max_new_tokens=40, eos_token_id=())
    settings = {"num_threads": 1, "max_kv_tokens": 128, "prefix_cache": False, "packing": "t5"}
    with caplog.at_level(logging.DEBUG, "bitnet"), bitnet.load(DATA / "llama-packed-bitlinear", **settings) as model:
        model.generate([[1, 2, 3] * 15, [4, 5, 6] * 15], config)
        model.infer([1, 2])
        with pytest.raises(ZeroDivisionError):
            model.generate([1, 2], config, logits_processor=lambda ids, logits: 1 / 0)
    told = [(record.name, record.getMessage()) for record in caplog.records]
    name, message = told[0]
    assert name == "bitnet.model"
    assert re.search(r"llama-packed-bitlinear.* is loaded in \d\.\d+ s: packing 't5', activations int8", message)
    said = [message for name, message in told if name in ("bitnet.scheduler", "bitnet.gathering")]
    assert said[0].startswith("request 1 pauses: request ")
    assert "all 2 pages of 64 tokens for keys and values are in use" in said[0]
    assert said[1:] == [
        "request 0 ends (length): 85 tokens, of which 0 were in memory",
        "request 1 ends (length): 85 tokens, of which 0 were in memory",
        "request 2 ends (read): 2 tokens, of which 0 were in memory",
        "request 3 ends (division by zero): 2 tokens, of which 0 were in memory",
    ]


def test_messages_go_to_the_present_standard_error(monkeypatch):
    with bitnet.debug():
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        bitnet.debug_trace("here")
        assert sys.stderr.getvalue().endswith("here\n")


# ---- errors and their layers


def test_an_error_tells_the_layers_it_passed():
    @ErrorContext.during("engine.generate", prompt_tokens=3)
    def generate():
        with ErrorContext.during("program.run", "one run", tokens=3, threads=2):
            try:
                raise KernelError("status 1")
            except KernelError as cause:
                raise InferenceError.not_finite("model.layers.0.mlp") from cause

    with pytest.raises(InferenceError) as caught:
        generate()
    error = caught.value
    assert [layer.operation for layer in error.layers] == ["program.run", "engine.generate"]
    assert error.layers[0].data == {"tokens": 3, "threads": 2}
    assert all(layer.source_location.startswith(f"{__file__}:") for layer in error.layers)
    assert [type(one) for one in error.chain()] == [InferenceError, KernelError]
    report = error.to_report()
    for part in ("InferenceError [error]", "operation: 'model.layers.0.mlp'", "during program.run: one run",
                 "  tokens: 3", "during engine.generate", "  prompt_tokens: 3", "caused by KernelError [error]",
                 "  status 1",
                 f"raised at {__file__}:"):  # fmt: skip
        assert part in report, part


@pytest.fixture(scope="module")
def loaded():
    with bitnet.load(DATA / "llama-packed-bitlinear", num_threads=1) as model:
        yield model


def test_the_engine_and_its_runs_are_layers(loaded):
    with pytest.raises(InferenceError, match="token 9999") as caught:
        loaded.infer([1, 9999])
    assert [layer.operation for layer in caught.value.layers] == ["run", "infer_batch"]
    assert caught.value.layers[0].data == {"model": loaded.model.path, "num_threads": 1}
    with pytest.raises(InferenceError, match="token 9999") as caught:
        loaded.generate([1, 9999], max_new_tokens=1)
    assert [layer.operation for layer in caught.value.layers] == ["run", "generate"]
    assert f"  model: {loaded.model.path!r}" in caught.value.to_report()


def test_a_trace_tells_every_operation_of_a_run(loaded, capsys):
    loaded.infer([1, 2])
    with bitnet.debug("trace"):
        loaded.infer([1, 2])
    loaded.infer([1, 2])
    lines = capsys.readouterr().err.splitlines()
    program = loaded.model.program
    assert len(lines) == 1 + len(program.names) + 1
    assert lines[-1].startswith("DEBUG bitnet.scheduler: request ")
    assert lines[0].startswith("DEBUG bitnet._core.program: a run of 2 tokens, 2 outputs: ")
    assert lines[1].startswith("TRACE bitnet._core.program: embed model.embed_tokens: ")


def test_an_error_in_a_kernel_comes_up_whole(tmp_path):
    folder = shutil.copytree(DATA / "llama-packed-bitlinear", tmp_path / "model")
    with bitnet.load(folder, num_threads=1) as model:
        os.truncate(folder / "model.safetensors", 100)
        with pytest.raises(InferenceError) as caught:
            model.infer([1, 2])
    assert [type(one) for one in caught.value.chain()] == [InferenceError, KernelError]
    assert [layer.operation for layer in caught.value.layers] == ["run", "infer_batch"]
    report = caught.value.to_report()
    assert "  kernel: 'embed'" in report
    assert "during infer_batch" in report


def test_loading_is_a_layer(tmp_path):
    with pytest.raises(bitnet.BitNetError) as caught:
        bitnet.load(tmp_path)
    assert [layer.operation for layer in caught.value.layers] == ["load_model"]
    assert caught.value.layers[0].data == {"path": str(tmp_path)}


def test_other_errors_pass_untouched():
    with pytest.raises(ZeroDivisionError), ErrorContext.during("something"):
        _ = 1 / 0
    with ErrorContext.during("something"):
        pass


@pytest.mark.parametrize(("said", "told"), [("", ""), ("Unable to allocate 1 GiB", r" \(Unable to allocate 1 GiB\)")])
def test_a_memory_error_of_python_becomes_the_cause_of_ours(said, told):
    with (pytest.raises(bitnet.MemoryError, match=f"^no memory is left for 'embed'{told}; end other") as caught,
          ErrorContext.during("run", tokens=3), ErrorContext.during("embed")):  # fmt: skip
        raise MemoryError(said)
    assert [layer.operation for layer in caught.value.layers] == ["embed", "run"]
    assert [type(one) for one in caught.value.chain()] == [bitnet.MemoryError, MemoryError]
    assert caught.value.layers[0].source_location.startswith(f"{__file__}:")


def test_a_report_names_causes_that_are_not_ours():
    def read():
        try:
            Path("/nowhere/at/all").read_bytes()
        except OSError as cause:
            raise bitnet.ModelLoadError.unreadable("/nowhere/at/all", cause.strerror) from cause

    with pytest.raises(BitNetError) as caught:
        read()
    assert "caused by FileNotFoundError: [Errno 2]" in caught.value.to_report()


