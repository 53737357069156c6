"""The adapter for lm-evaluation-harness: its interface, and the same numbers as the harness's own `hf` model gets from
Transformers with the same checkpoint, on small task files of our own (extra `peers`)."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import bitnet
from bitnet.assets import BUNDLED

# The harness and Transformers warn of themselves.
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

DATA = Path(__file__).resolve().parents[1] / "data" / "lm_eval"
TASKS = ["bitnet_choices", "bitnet_stories", "bitnet_starts"]
CLOSE = "kv_dtype=float32,head_dtype=float32,num_threads=1"  # to Transformers in float32


@pytest.fixture(scope="module", autouse=True)
def offline():
    pytest.importorskip("lm_eval")
    before = dict(os.environ)
    os.environ.update(HF_DATASETS_OFFLINE="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false",
                      TORCHDYNAMO_DISABLE="1")  # fmt: skip
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The task files, with the place of their data written in."""
    folder = tmp_path_factory.mktemp("tasks")
    for file in DATA.glob("*.yaml"):
        (folder / file.name).write_text(file.read_text().replace("DATA", str(DATA)))
    return str(folder)


def evaluated(tasks, model, arguments, **settings):
    import lm_eval
    from lm_eval.tasks import TaskManager

    return lm_eval.simple_evaluate(model=model, model_args=arguments, tasks=TASKS, bootstrap_iters=0,
                                   task_manager=TaskManager(include_path=tasks), **settings)  # fmt: skip


@pytest.fixture(scope="module")
def ours(tasks):
    from bitnet.harness import BitNetLM

    assert BitNetLM.__name__ == "BitNetLM"
    return evaluated(tasks, "bitnet", f"path={BUNDLED},{CLOSE}", batch_size=8)


def numbers(found, task):
    return np.array([float(one) for sample in found["samples"][task] for one in np.ravel(np.array(
        sample["resps"], object)) if not isinstance(one, bool | np.bool_)])  # fmt: skip


def test_the_numbers_are_those_of_hf(tasks, ours):
    transformers = pytest.importorskip("transformers")
    from lm_eval.models.huggingface import HFLM

    # With `pretrained=PATH,dtype=float32` the unpacked weights are bfloat16, which float32 activations cannot meet.
    model = transformers.AutoModelForCausalLM.from_pretrained(BUNDLED, dtype="float32")
    for part in model.children():
        part.float()
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED)
    theirs = evaluated(tasks, HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), None)
    for name in ("acc,none", "acc_norm,none"):
        assert ours["results"]["bitnet_choices"][name] == theirs["results"]["bitnet_choices"][name]
    # Both round activations to 8 bits. Where a sum of floats in another order rounds to the neighbour, logits move by
    # 0.1 of some 20, and so do those of all tokens after it, through the cache; elsewhere they are the same to 1e-5.
    for task, usual in (("bitnet_choices", 2e-6), ("bitnet_stories", 1e-3)):
        a, b = numbers(ours, task), numbers(theirs, task)
        print(f"{task}: likelihoods of {b.min():.1f} to {b.max():.1f} nats are apart by "
              f"{np.median(np.abs(a / b - 1)):.1e} in the median, and by {np.abs(a - b).max():.3f} nats at most")
        assert np.median(np.abs(a / b - 1)) < usual
        assert (np.abs(a - b) < 0.1 + 1e-3 * np.abs(b)).all()
    bits = [found["results"]["bitnet_stories"]["bits_per_byte,none"] for found in (ours, theirs)]
    assert bits[0] == pytest.approx(bits[1], rel=3e-3)
    said, heard = ([s["resps"][0][0] for s in found["samples"]["bitnet_starts"]] for found in (ours, theirs))
    print(*zip(said, heard, strict=True), sep="\n")
    assert sum(one == other for one, other in zip(said, heard, strict=True)) >= len(said) - 1


def test_it_is_good_at_what_it_was_trained_for(ours):
    assert ours["results"]["bitnet_choices"]["acc,none"] >= 0.8
    assert 0.4 < ours["results"]["bitnet_stories"]["bits_per_byte,none"] < 1.0


def test_batches_change_nothing(tasks, ours):
    one = evaluated(tasks, "bitnet", f"path={BUNDLED},{CLOSE}", batch_size=1)
    for task in TASKS:
        assert [sample["resps"] for sample in one["samples"][task]] == [
            sample["resps"] for sample in ours["samples"][task]
        ]


def test_likelihoods_are_those_of_score():
    from lm_eval.api.instance import Instance

    from bitnet.harness import BitNetLM

    lm = BitNetLM(path=BUNDLED, num_threads=1)
    requests = [Instance("loglikelihood", {}, (context, text), 0)
                for context, text in (("Once upon", " a time"), ("Once upon", " a spoon"), ("", "Once"))]  # fmt: skip
    found = lm.loglikelihood(requests)
    with bitnet.load(num_threads=1) as model:
        scores = model.score([" a time", " a spoon"], ["Once upon"] * 2)
        scores += model.score([model.model.tokenizer.encode("Once", False)], [[0]])
    assert found == [(score.total, score.is_greedy) for score in scores]
    assert found[0][1]
    assert not found[1][1]


def test_what_is_too_long_loses_its_beginning():
    from bitnet.harness import BitNetLM

    lm = BitNetLM(num_threads=1, max_length=8)
    [long] = lm._loglikelihood_tokens([(None, list(range(20, 40)), [5, 6])], disable_tqdm=True)
    [short] = lm._loglikelihood_tokens([(None, list(range(33, 40)), [5, 6])], disable_tqdm=True)
    assert long == short


def test_generation_follows_the_task():
    from lm_eval.api.instance import Instance

    from bitnet.harness import BitNetLM

    lm = BitNetLM(num_threads=1)

    def said(**settings):
        return lm.generate_until([Instance("generate_until", {}, ("Once upon a time", settings), 0)])[0]

    assert said(until=["."], max_gen_toks=60).startswith(", there was a")
    assert "." not in said(until=["."], max_gen_toks=60)
    with bitnet.load(num_threads=1) as model:
        drawn = {"do_sample": True, "temperature": 0.8, "top_p": 0.9}
        assert said(max_gen_toks=9, seed=3, **drawn) == model.generate("Once upon a time", max_new_tokens=9, seed=3,
                                                                       **drawn).text  # fmt: skip
    with pytest.raises(bitnet.ConfigurationError, match="no field 'num_beams'"):
        said(num_beams=4)
    with pytest.raises(bitnet.ConfigurationError, match="max_gen_toks is 512; it must be below 512"):
        said(max_gen_toks=512)


def test_what_cannot_be_loaded():
    from bitnet.harness import BitNetLM

    for settings, sentence in (
        ({"path": "a", "pretrained": "b"}, "path and pretrained are the same"),
        ({"device": "cuda:1"}, "device is 'cuda:1'"),
        ({"max_length": 513}, "max_length is 513; it must be from 2 to 512"),
        ({"threads": 1}, "no field 'threads'"),
    ):
        with pytest.raises(bitnet.ConfigurationError, match=sentence):
            BitNetLM(**settings)


def test_the_command_line_of_the_harness_runs_it(tasks, tmp_path):
    command = [sys.executable, "-m", "bitnet.harness", "--model", "bitnet", "--model_args", f"path={BUNDLED}",
               "--tasks", "bitnet_choices", "--include_path", tasks, "--batch_size", "auto",
               "--output_path", str(tmp_path), "--log_samples"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "|bitnet_choices|" in done.stdout
    [results] = tmp_path.glob("**/results_*.json")
    written = json.loads(results.read_text())
    assert written["config"]["model"] == "bitnet"
    assert written["config"]["head_dtype"] == "int8"


def test_releases_with_plugins_find_it():
    from bitnet.harness import BitNetLM

    (found,) = [one for one in metadata.entry_points(group="lm_eval.models") if one.name == "bitnet"]
    assert found.load() is BitNetLM
