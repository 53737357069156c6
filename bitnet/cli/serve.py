"""Serve a model over HTTP, to clients of OpenAI's interface.

It listens on this machine only unless --host says otherwise. Ctrl-C, or SIGTERM, lets requests in progress end.
"""

import argparse
import os
import sys

import bitnet
from bitnet.cli.session import add_engine_arguments, engine_config, refused
from bitnet.errors import DeviceError
from bitnet.server import ServerConfig

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitnet serve``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    """
    default = ServerConfig()
    parser.add_argument("model", nargs="?", metavar="MODEL",
                        help="a checkpoint, or an id of the Hub (default: the model that comes with bitnet)")
    parser.add_argument("--host", default=default.host, help=f"address to listen at (default: {default.host})")
    parser.add_argument("--port", type=int, default=default.port, metavar="N", help=f"(default: {default.port})")
    parser.add_argument("--name", metavar="NAME", help="what clients call the model (default: after its path)")
    parser.add_argument("--api-key", action="append", default=[], metavar="KEY",
                        help="ask for this key; may be repeated; better in BITNET_API_KEYS, separated by commas, which "
                             "other users of this machine do not see")
    parser.add_argument("--cors-origin", action="append", default=[], metavar="ORIGIN",
                        help="let pages of this origin use the server; may be repeated")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                        help="a name by which the server may be addressed; may be repeated")
    parser.add_argument("--chat-template", metavar="FILE", help="a template in Jinja instead of the model's, or plain")
    parser.add_argument("--max-body-bytes", type=int, default=default.max_body_bytes, metavar="N",
                        help=f"of a request (default: {default.max_body_bytes})")
    parser.add_argument("--max-prompt-tokens", type=int, metavar="N", help="(default: what the context holds)")
    parser.add_argument("--max-requests", type=int, default=default.max_requests, metavar="N",
                        help=f"in progress together (default: {default.max_requests})")
    parser.add_argument("--max-choices", type=int, default=default.max_choices, metavar="N",
                        help=f"answers to one request (default: {default.max_choices})")
    parser.add_argument("--timeout", type=float, default=default.timeout_s, metavar="SECONDS",
                        help=f"after which an answer ends with what there is (default: {default.timeout_s:g})")
    parser.add_argument("--shutdown", type=float, default=default.shutdown_s, metavar="SECONDS",
                        help=f"that requests in progress have when it is stopped (default: {default.shutdown_s:g})")
    parser.add_argument("--num-threads", type=int, metavar="N", help="(default: what this process may use)")
    add_engine_arguments(parser)
    parser.set_defaults(run=run, parser=parser)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        0; 1 where the address cannot be had.
    """
    keys = [*args.api_key, *filter(None, os.environ.get("BITNET_API_KEYS", "").split(","))]
    template = args.chat_template
    if template is not None and os.path.isfile(template):
        with open(template, encoding="utf-8") as file:
            template = file.read()
    with refused(args):
        config = ServerConfig(
            name=args.name, host=args.host, port=args.port, api_keys=keys or None,
            cors_origins=args.cors_origin or None, hosts=args.allow_host or None, chat_template=template,
            max_body_bytes=args.max_body_bytes, max_prompt_tokens=args.max_prompt_tokens,
            max_requests=args.max_requests, max_choices=args.max_choices, timeout_s=args.timeout,
            shutdown_s=args.shutdown,
        )  # fmt: skip
    from bitnet.server import serve

    engine = bitnet.InferenceEngine(engine_config(args, args.num_threads))

    def started(address: str) -> None:
        print(f"serving at {address} (OpenAI's interface at {address}/v1)", file=sys.stderr, flush=True)

    try:
        serve(config, path=args.model, engine=engine, started=started)
    except OSError as error:
        raise DeviceError.address(f"{args.host}:{args.port}", error.strerror or str(error)) from error
    return 0
