"""Answers the prompts of a file on a Ray cluster: one prompt a line in, one JSON object a line out.

pip install 'bitnet-runtime' 'ray[data]' && python examples/ray_batch.py prompts.txt answers --workers 2

One machine is better served by `bitnet batch`, which also goes on after a crash.
"""

import argparse

import ray


class Worker:
    """Loads the model once, and answers many prompts together."""

    def __init__(self, model, cpus, max_new_tokens):
        import bitnet

        self.model, self.most = bitnet.load(model, num_threads=cpus), max_new_tokens

    def __call__(self, batch):
        prompts = [str(prompt) for prompt in batch["text"]]
        settings = self.model.model.generation_config.replace(max_new_tokens=self.most)
        answers = self.model.engine.generate(self.model.model, prompts, settings)
        return {"prompt": prompts, "answer": [one.text for one in answers],
                "reason": [str(one.error or one.finish_reason) for one in answers]}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", help="a text file, or a folder of them")
    parser.add_argument("answers", help="a folder, for files of JSON lines")
    parser.add_argument("--model", help="a checkpoint that every machine can read, or an id of the Hub")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=1, help="of each worker, which takes as many threads")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    little = {"num_cpus": 0}  # reading and writing do not wait for a CPU that the workers have
    prompts = ray.data.read_text(args.prompts, ray_remote_args=little)
    answers = prompts.map_batches(
        Worker, fn_constructor_args=(args.model, args.cpus, args.max_new_tokens), batch_size=args.batch_size,
        compute=ray.data.ActorPoolStrategy(size=args.workers), num_cpus=args.cpus,
    )  # fmt: skip
    answers.write_json(args.answers, ray_remote_args=little)


if __name__ == "__main__":
    main()
