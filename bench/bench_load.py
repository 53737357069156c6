"""Load: 64 clients that stream answers of the bundled model, for BITNET_LOAD_S seconds (20), against one client.

BITNET_LOAD_S=180 python -m pytest bench/bench_load.py -s
"""

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import time

import numpy as np
import pytest

import bitnet

httpx = pytest.importorskip("httpx")
pytest.importorskip("starlette")

CLIENTS, SECONDS, TOKENS = 64, float(os.environ.get("BITNET_LOAD_S", 20)), 100
SUBJECTS = ("girl", "boy", "dog", "cat", "bird", "frog", "tree", "king", "fish", "bear", "sun", "ball")


def asked():
    prompts = [f"Once upon a time there was a {subject}" for subject in SUBJECTS]
    return [{"prompt": prompt, "seed": seed} for prompt in prompts for seed in range(8)]


def alone():
    """What each is answered by an engine that has nothing else to do."""
    with bitnet.load(num_threads=1) as model:
        drawn = {"do_sample": True, "temperature": 0.9, "top_k": None, "top_p": 1.0, "max_new_tokens": TOKENS}
        return [model.generate(one["prompt"], **drawn, seed=one["seed"]).text for one in asked()]


async def client(http, end, expected, gaps, done):
    """One answer after the other, until it is time; each has to be the one that was computed alone."""
    requests, choose = asked(), random.Random(len(done))
    done.append(None)  # so the next client chooses others
    while time.monotonic() < end:
        number = choose.randrange(len(requests))
        body = {**requests[number], "max_tokens": TOKENS, "temperature": 0.9, "stream": True}
        text, last = "", None
        async with http.stream("POST", "/v1/completions", json=body) as found:
            assert found.status_code == 200
            async for line in found.aiter_lines():
                if line == "data: [DONE]":
                    done.append(number)
                elif line:
                    now = time.perf_counter()
                    if last is not None:
                        gaps.append(now - last)
                    last = now
                    text += json.loads(line[6:])["choices"][0]["text"]
        assert text == expected[number], (requests[number], text, expected[number])


async def load(address, count, seconds, expected):
    gaps, done = [], []
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as http:
        start = time.monotonic()
        await asyncio.gather(*(client(http, start + seconds, expected, gaps, done) for _ in range(count)))
    answers = sum(one is not None for one in done)
    rate = len(gaps) / (time.monotonic() - start)
    p50, p99 = np.quantile(gaps, [0.5, 0.99]) * 1e3
    print(f"\n{count:3d} clients, {seconds:g} s: {answers} answers, all as if alone; {rate:.0f} tokens/s; between "
          f"tokens {p50:.1f} ms (median), {p99:.1f} ms (p99)", end="")  # fmt: skip


def memory(address, pid):
    """MB resident, and MB of native memory, by the server's own count."""
    with open(f"/proc/{pid}/status") as file:
        rss = next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1e3
    found = re.findall(r'bitnet_memory_bytes\{tag="\w+"\} (\S+)', httpx.get(f"{address}/metrics").text)
    return rss, sum(map(float, found)) / 1e6


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory of a process")
def test_load():
    expected = alone()
    serve = [sys.executable, "-m", "bitnet", "serve", "--port", "0"]
    with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as server:
        try:
            address = re.search(r"http://\S+", server.stderr.readline())[0]
            while httpx.get(f"{address}/health/ready").status_code != 200:
                time.sleep(0.05)
            asyncio.run(load(address, 1, min(SECONDS, 5), expected))
            asyncio.run(load(address, CLIENTS, 5, expected))  # all pages and threads are there
            before = memory(address, server.pid)
            asyncio.run(load(address, CLIENTS, SECONDS, expected))
            after = memory(address, server.pid)
        finally:
            server.terminate()
    print(f"\nresident {before[0]:.1f} MB before, {after[0]:.1f} after; native memory {before[1]:.1f}, {after[1]:.1f}")
    assert after[0] < before[0] + 10
    assert after[1] < before[1] + 1
