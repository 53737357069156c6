"""The examples for several machines, on a cluster of two workers on this one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

import bitnet

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
ray = pytest.importorskip("ray")
EXAMPLES = Path(__file__).parents[2] / "examples"
PROMPTS = ["Once upon a time", "The dog", "A cat", "One day"]
PORT = 8477


@pytest.fixture(scope="module")
def environment():
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        paths = os.pathsep.join([str(EXAMPLES.parent), *filter(None, sys.path)])
        yield {**os.environ, "RAY_ADDRESS": cluster.address, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": paths}
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def expected():
    with bitnet.load(num_threads=1) as model:
        return {prompt: model.generate(prompt, max_new_tokens=8).text for prompt in PROMPTS}


def test_a_file_of_prompts(tmp_path, environment, expected):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    command = [sys.executable, str(EXAMPLES / "ray_batch.py"), str(tmp_path / "prompts.txt"), str(tmp_path / "answers"),
               "--max-new-tokens", "8", "--batch-size", "2"]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for file in (tmp_path / "answers").iterdir() for line in file.read_text().splitlines()]
    answers = {one["prompt"]: one["answer"] for one in map(json.loads, lines)}
    assert answers == expected


def test_replicas_behind_one_endpoint(environment, expected):
    command = [sys.executable, str(EXAMPLES / "ray_serve.py"), "--port", str(PORT)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == f"serving at http://127.0.0.1:{PORT}/v1\n"
            with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=60) as http:
                end = time.monotonic() + 60
                while http.get("/health/ready").status_code != 200:
                    assert time.monotonic() < end
                    time.sleep(0.2)
                for prompt in PROMPTS * 4:
                    body = {"prompt": prompt, "max_tokens": 8, "model": "bitnet"}
                    found = http.post("/v1/completions", json=body)
                    while found.status_code == 503 and time.monotonic() < end:  # a replica that is still loading
                        found = http.post("/v1/completions", json=body)
                    assert found.json()["choices"][0]["text"] == expected[prompt]
                text = http.post("/v1/completions", json={**body, "stream": True}).text
                assert text.endswith("data: [DONE]\n\n")
        finally:
            process.kill()
