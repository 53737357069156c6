"""The command as a process: it ends when it is told, and what is in progress ends before."""

import os
import signal
import subprocess
import sys
import time

import httpx
import pytest
from servers import until

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Once upon a time"}], "stream": True, "seed": 1, "temperature": 1.0}
SLOW = """
import sys, time, bitnet
from servers import SlowEngine
from bitnet.server import ServerConfig, serve
serve(ServerConfig(port=0, shutdown_s=float(sys.argv[1])), engine=SlowEngine(),
      started=lambda address: print(address, flush=True))
"""


@pytest.fixture
def slow(request):
    """A server whose tokens take 5 ms, that waits so many seconds when it is told to stop."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", SLOW, str(request.param)], stdout=subprocess.PIPE, text=True,
                          env=environment) as process:  # fmt: skip
        address = process.stdout.readline().strip()
        until(lambda: httpx.get(f"{address}/health/ready").status_code == 200)
        yield process, address
        process.kill()


@pytest.mark.parametrize("slow", [30], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_in_progress_may_end(slow, number):
    process, address = slow
    with httpx.stream("POST", f"{address}{CHAT}", json={**BODY, "max_tokens": 200}, timeout=30) as found:
        lines = found.iter_lines()
        next(lines)
        process.send_signal(number)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in rest[-2]
    assert process.wait(10) is not None


@pytest.mark.parametrize("slow", [0.3], indirect=True)
def test_at_the_deadline_it_ends_with_an_error(slow):
    process, address = slow
    start = time.monotonic()
    with httpx.stream("POST", f"{address}{CHAT}", json={**BODY, "max_tokens": 500}, timeout=30) as found:
        lines = found.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert '"code":"server_stopping"' in rest[-1]
    assert process.wait(10) is not None
    assert time.monotonic() - start < 8


@pytest.mark.parametrize("slow", [30], indirect=True)
def test_a_killed_server_is_as_new_when_it_begins_again(slow):
    process, address = slow
    with httpx.stream("POST", f"{address}{CHAT}", json={**BODY, "max_tokens": 500}, timeout=30) as found:
        lines = found.iter_lines()
        next(lines)
        process.kill()
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    assert process.wait(10) == -signal.SIGKILL


def test_the_command_serves_and_says_where():
    command = [sys.executable, "-m", "bitnet", "serve", "--port", "0", "--num-threads", "1", "--name", "m"]
    environment = {**os.environ, "BITNET_API_KEYS": "a,b"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = process.stderr.readline()
            address = line.split()[2]
            assert line == f"serving at {address} (OpenAI's interface at {address}/v1)\n"
            assert httpx.get(f"{address}/v1/models").status_code == 401
            headers = {"authorization": "Bearer b"}
            until(lambda: httpx.get(f"{address}/health/ready").status_code == 200)
            assert httpx.get(f"{address}/v1/models", headers=headers).json()["data"][0]["id"] == "m"
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
