"""Rows of test_raises.py for profiles, diagnoses and checksums."""

import functools
import hashlib
import shutil
import tempfile
from pathlib import Path
from unittest import mock

from checkpoints import DATA

import bitnet
from bitnet.diagnosis import Diagnosis, OperationValues
from bitnet.profiling import Profile

CHECKPOINT = DATA / "llama-packed-bitlinear"


@functools.cache
def model(verify=None):
    return bitnet.load(CHECKPOINT, num_threads=1, verify=verify).model


def without_matplotlib():
    with mock.patch.dict("sys.modules", {"matplotlib": None, "matplotlib.figure": None}):
        Profile().plot("profile.png")


def different():
    one = Diagnosis([OperationValues("a", "add", 0, 0, 0, 0, 0, 0, 0, None)], 1)
    next(one.differences(one))


def in_folder(act):
    """Do something with a copy of the checkpoint; its path is cut out of what is said."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(CHECKPOINT, f"{folder}/model"))
        try:
            act(copy)
        except Exception as error:
            error.args = (str(error).replace(str(copy), "..."),)
            raise


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def changed_on_disk(copy):
    loaded = bitnet.load(copy, num_threads=1, verify="load").model
    flip(copy / "model.safetensors")
    loaded.verify()


def changed_since_its_checksum(copy):
    (copy / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n")
    bitnet.load(copy, num_threads=1, verify="load")


def changed_in_the_cache(copy):
    content = (copy / "model.safetensors").read_bytes()
    blob = copy / ("0" * 64)
    assert hashlib.sha256(content).hexdigest() != blob.name
    blob.write_bytes(content)
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to(blob)
    bitnet.load(copy, num_threads=1, verify="load")


ROWS = [
    ("profiling.py", "ConfigurationError.choice", lambda: Profile().operations("colour"),
     "by is 'colour'; it must be one of 'operation', 'kind', 'layer'"),
    ("profiling.py", "DeviceError.missing_extra", without_matplotlib,
     "'matplotlib' is not installed; run: pip install 'bitnet-runtime[plot]'"),
    ("diagnosis.py", "ConfigurationError.conflict", different,
     "Diagnosis.differences: the values were not kept; use keep=True"),
    ("diagnosis.py", "InferenceError.empty_prompt", lambda: bitnet.diagnose(model(), []),
     "the prompt has no tokens; give at least one"),
    ("calibration.py", "InferenceError.empty_prompt", lambda: bitnet.activation_statistics(model(), []),
     "the prompt has no tokens; give at least one"),
    ("diagnosis.py", "InferenceError.beyond_context", lambda: bitnet.diagnose(model(), [1] * 129),
     "position 128 is beyond the 128 tokens of the context"),
    ("model.py", "ModelLoadError.no_checksums", lambda: model().verify(),
     f"'{CHECKPOINT}' was loaded without checksums; load it with verify='load'"),
    ("checksums.py", "ModelLoadError.changed", lambda: in_folder(changed_in_the_cache),
     f"'...': the bytes of '{'0' * 64}' in the cache have changed: their checksum differs"),
    ("checksums.py", "ModelLoadError.changed", lambda: in_folder(changed_since_its_checksum),
     "'...': the bytes of 'model.safetensors' in the file have changed: their checksum differs"),
    ("checksums.py", "ModelLoadError.changed", lambda: in_folder(changed_on_disk),
     "'...': the bytes of 'model.layers.3.self_attn.v_proj.weight' in the file have changed: their checksum differs"),
]  # fmt: skip
