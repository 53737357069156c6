"""Replicas of a model on a Ray cluster, behind one endpoint: each is a server as `bitnet serve` is one.

pip install 'bitnet-runtime[server]' 'ray[serve]' && python examples/ray_serve.py --replicas 2

Ray gives each request to the replica with the least to do. Several machines: `ray start` on each, then this on one.
"""

import argparse
import time

from ray import serve

from bitnet.server import ServerConfig, create_app


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="a checkpoint that every machine can read, or an id of the Hub")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=1, help="of each replica, which takes as many threads")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--name", default="bitnet", help="what clients call the model")
    args = parser.parse_args()

    def app():  # is called in each replica, so each has an engine of its own
        from bitnet import EngineConfig, InferenceEngine

        engine = InferenceEngine(EngineConfig(num_threads=args.cpus))
        # Ray's proxy hands on the name by which it was asked, so any will do.
        return create_app(ServerConfig(host="0.0.0.0", name=args.name), path=args.model, engine=engine)

    options = {"num_replicas": args.replicas, "ray_actor_options": {"num_cpus": args.cpus},
               "max_ongoing_requests": 64}  # fmt: skip
    serve.start(http_options={"host": args.host, "port": args.port})
    serve.run(serve.deployment(**options)(serve.ingress(app)()).bind(), route_prefix="/")
    print(f"serving at http://{args.host}:{args.port}/v1", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
