"""Rows of test_raises.py for keys and values in files."""

import functools
import hashlib
import json
import tempfile
from pathlib import Path

from raises_runs import engine, loaded

from bitnet.config import EngineConfig
from bitnet.engine import InferenceEngine
from bitnet.kv_state import identity


@functools.cache
def whole():
    with tempfile.TemporaryDirectory() as folder:
        engine().save_state(loaded(), f"{folder}/state", [5, 6, 7])
        return (Path(folder) / "state").read_bytes()


def reading(change):
    """Read a file that was changed: ``change(header, the rest without the checksum)`` gives both, or the file."""
    data = whole()
    length = int.from_bytes(data[8:12], "little")
    made = change(json.loads(data[12 : 12 + length]), data[12 + length : -32])
    if not isinstance(made, bytes):
        header = made[0] if isinstance(made[0], bytes) else json.dumps(made[0]).encode()
        made = data[:8] + len(header).to_bytes(4, "little") + header + made[1]
        made += hashlib.sha256(made).digest()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        path.write_bytes(made)
        try:
            engine().load_state(loaded(), path)
        except Exception as error:
            error.args = (str(error).replace(folder, "..."),)
            raise


def without_memory_of_texts(act):
    with InferenceEngine(EngineConfig(num_threads=1, prefix_cache=False)) as one:
        act(one)


ROWS = [
    ("engine.py", "ConfigurationError.conflict",
     lambda: without_memory_of_texts(lambda one: one.save_state(loaded(), "a", [5])),
     "save_state: what was computed is remembered only with prefix_cache"),
    ("engine.py", "ConfigurationError.conflict",
     lambda: without_memory_of_texts(lambda one: one.load_state(loaded(), "a")),
     "load_state: what was computed is remembered only with prefix_cache"),
    ("kv_state.py", "ModelLoadError.unwritable", lambda: engine().save_state(loaded(), "/none/state", [5]),
     "cannot write '/none/state': No such file or directory"),
    ("kv_state.py", "ModelLoadError.unreadable", lambda: engine().load_state(loaded(), "/none/state"),
     "cannot read '/none/state': No such file or directory"),
    ("kv_state.py", "FormatError.value", lambda: reading(lambda header, rest: b"GGUF" + bytes(60)),
     "'.../state': the beginning is b'GGUF\\x00\\x00\\x00\\x00'; it must be b'BITNETKV', of a file that save_state "
     "wrote"),
    ("kv_state.py", "FormatError.value", lambda: reading(lambda header, rest: whole()[:9]),
     "'.../state': its size is 9; it must be larger, for what its header says"),
    ("kv_state.py", "FormatError.not_json", lambda: reading(lambda header, rest: (b"{", rest)),
     "'.../state': the header is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"
     "; the file is damaged: get it again"),
    ("kv_state.py", "FormatError.value", lambda: reading(lambda header, rest: ({**header, "model": "x"}, rest)),
     f"'.../state': model is 'x'; it must be '{identity(loaded())}': the file belongs to another model, or version"),
    ("kv_state.py", "FormatError.value", lambda: reading(lambda header, rest: ({**header, "tokens": 0}, rest)),
     "'.../state': tokens is 0; it must be a whole number from 1 to 128"),
    ("kv_state.py", "FormatError.value", lambda: reading(lambda header, rest: ({**header, "tokens": 4}, rest)),
     f"'.../state': the size behind its header is {12 + loaded().program.page_bytes}; it must be "
     f"{16 + loaded().program.page_bytes} bytes for 4 tokens"),
    ("kv_state.py", "FormatError.value",
     lambda: reading(lambda header, rest: (header, (600).to_bytes(4, "little") + rest[4:])),
     "'.../state': a token is 600; it must be of the model's vocabulary"),
    ("kv_state.py", "FormatError.value", lambda: reading(lambda header, rest: whole()[:-1] + b"?"),
     "'.../state': the checksum is 'another'; it must be that of the bytes before; it is damaged"),
]  # fmt: skip
