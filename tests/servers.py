"""Servers in threads of this process."""

import contextlib
import threading
import time

import bitnet
from bitnet import EngineConfig
from bitnet.server import ServerConfig

KEY = "a-key"


class SlowEngine(bitnet.InferenceEngine):
    """Takes 5 ms more for each token of an answer, and ends none."""

    def stream(self, model, prompt, config=None, **options):
        def slowly(ids, logits):
            time.sleep(0.005)
            logits[list(model.eos_token_ids)] = -1e9

        return super().stream(model, prompt, config, logits_processor=slowly, **options)


@contextlib.contextmanager
def running(model=None, engine=None, path=None, engine_config=None, **settings):
    """A server at a free port; gives its address and its service."""
    import uvicorn

    from bitnet.server import create_app
    from bitnet.server.app import service_of
    from bitnet.server.serving import Server

    engine = engine or bitnet.InferenceEngine(engine_config or EngineConfig(num_threads=1))
    app = create_app(ServerConfig(port=0, **settings), model=model, engine=engine, path=path)
    config = uvicorn.Config(app, port=0, log_level="warning", access_log=False, ws="none", lifespan="on")
    server = Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", service_of(app)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def until(condition, seconds=10):
    """Wait for something that another thread brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
