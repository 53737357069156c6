"""Rows of test_raises.py for the server."""

import importlib
import socket
import sys
from unittest import mock

import bitnet
from bitnet.server import ServerConfig
from bitnet.server.problems import refuse


def an_address_that_is_taken():
    """As ``bitnet serve`` meets it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        parser = importlib.import_module("argparse").ArgumentParser()
        command = importlib.import_module("bitnet.cli.serve")
        command.add_arguments(parser)
        try:
            command.run(parser.parse_args(["--port", str(port)]))
        except bitnet.DeviceError as error:
            error.args = (str(error).replace(str(port), "PORT"),)
            raise


def without_starlette():
    with mock.patch.dict(sys.modules, {"starlette": None}):
        bitnet.server.serve  # noqa: B018


PASSED_ON = {("server/answers.py", "news.error"), ("server/serving.py", "")}

ROWS = [
    ("server/problems.py", "Problem", lambda: refuse(400, "no"), "no"),
    ("server/__init__.py", "AttributeError", lambda: bitnet.server.none,
     "module 'bitnet.server' has no attribute 'none'"),
    ("server/__init__.py", "DeviceError.missing_extra", without_starlette,
     "'starlette' is not installed; run: pip install 'bitnet-runtime[server]'"),
    ("server/config.py", "self._refused", lambda: ServerConfig(name="a b"),
     "ServerConfig.name is 'a b'; it must be letters, digits and -_./:"),
    ("server/config.py", "self._refused", lambda: ServerConfig(host=""),
     "ServerConfig.host is ''; it must be a name or an address"),
    ("server/config.py", "self._refused", lambda: ServerConfig(chat_template=1),
     "ServerConfig.chat_template is 1; it must be a string, or None"),
    ("cli/serve.py", "DeviceError.address", an_address_that_is_taken,
     "cannot listen at 127.0.0.1:PORT: Address already in use"),
]  # fmt: skip
