"""The server's own cost: CPU time of each streamed token, of 16 streams together, against the engine alone.

python -m pytest bench/bench_server.py -s
"""

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("starlette")

STREAMS, TOKENS, ROUNDS = 16, 200, 7
LIMIT_MS = 0.3  # of CPU for each streamed token, beyond the engine's
CHAT = "/v1/chat/completions"

ALONE = """
import asyncio, sys
import bitnet
engine = bitnet.InferenceEngine(bitnet.EngineConfig(num_threads=1))
model = engine.load_model()

async def read(number, tokens):
    drawn = {"do_sample": True, "temperature": 1.0, "top_k": None, "top_p": 1.0, "seed": number}
    config, count = model.generation_config.replace(max_new_tokens=tokens, **drawn), 0
    async for piece in engine.stream(model, f"Once upon a time there were {number}", config):
        count += piece.token is not None
    return count

async def main(streams, tokens):
    return sum(await asyncio.gather(*(read(number, tokens) for number in range(streams))))

print("ready", flush=True)
for line in sys.stdin:
    print(asyncio.run(main(*map(int, line.split()))), flush=True)
"""


def cpu_s(process):
    """Seconds of CPU that a process has had (Linux)."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def read(client, number):
    """Streams an answer; gives how many events had text, or another token's."""
    body = {"messages": [{"role": "user", "content": f"Once upon a time there were {number}"}], "max_tokens": TOKENS,
            "temperature": 1.0, "seed": number, "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
    count = 0
    async with client.stream("POST", CHAT, json=body) as found:
        async for line in found.aiter_lines():
            if '"usage"' in line:
                count = json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"]
    return count


async def read_all(address):
    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
        return sum(await asyncio.gather(*(read(client, number) for number in range(STREAMS))))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the time of a process")
def test_a_streamed_token():
    serve = [sys.executable, "-m", "bitnet", "serve", "--port", "0", "--num-threads", "1"]
    with (
        subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as server,
        subprocess.Popen([sys.executable, "-c", ALONE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         text=True) as alone,
    ):  # fmt: skip
        address = re.search(r"http://\S+", server.stderr.readline())[0]
        assert alone.stdout.readline() == "ready\n"
        while httpx.get(f"{address}/health/ready").status_code != 200:
            pass
        taken, tokens = {"server": [], "alone": []}, 0
        for _ in range(ROUNDS + 1):
            before = cpu_s(server)
            tokens = asyncio.run(read_all(address))
            taken["server"].append((cpu_s(server) - before) / tokens * 1e3)
            before = cpu_s(alone)
            alone.stdin.write(f"{STREAMS} {TOKENS}\n")
            alone.stdin.flush()
            assert int(alone.stdout.readline()) == tokens
            taken["alone"].append((cpu_s(alone) - before) / tokens * 1e3)
        server.terminate()
        alone.stdin.close()
    served, engine = (statistics.median(one[1:]) for one in taken.values())  # the first round warms up
    own = statistics.median(a - b for a, b in zip(taken["server"][1:], taken["alone"][1:], strict=True))
    print(f"\n{STREAMS} streams, {tokens} tokens, {ROUNDS} rounds in turn: {served:.3f} ms of CPU a token, the engine "
          f"alone {engine:.3f}; the server's own {own:.3f}, limit {LIMIT_MS} ({own / LIMIT_MS:.2f} of it)")  # fmt: skip
    assert tokens > 0
