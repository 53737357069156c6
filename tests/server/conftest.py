"""A server in a thread of this process, and clients of it."""

import httpx
import pytest

import bitnet
from bitnet import EngineConfig

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from servers import KEY, running


@pytest.fixture(scope="session")
def model():
    return bitnet.InferenceEngine(EngineConfig(num_threads=1)).load_model()


@pytest.fixture(scope="session")
def alone(model):
    """An engine that has nothing else to do."""
    with bitnet.InferenceEngine(EngineConfig(num_threads=1)) as engine:
        yield engine


@pytest.fixture(scope="session")
def server(model):
    with running(model) as (address, service):
        yield address, service


@pytest.fixture(scope="session")
def http(server):
    with httpx.Client(base_url=server[0], timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def client(server):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        yield client
