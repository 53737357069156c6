"""Whole models against what the machine can do: both sides, taken in turn, their ratio, and the bar it must reach.

    python bench/bench_limits.py [--shape 2b4t] [--kv-dtype float16] [-t 2] [-r 5] [CHECK ...]

Checks: decode, prefill, batch, long, lookup, step. The exit code is 1 where a ratio is short of its bar. Before a shape
is timed its logits are compared, bit for bit, over threads and over ways to cut the prompt.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass

import numpy as np

import bitnet
from bitnet import machine
from bitnet.cli.bench_measure import PAGE_TOKENS, head_bytes, ternary_parameters

LIMIT_TRIES = 5


@dataclass
class Row:
    """One comparison: medians of what was measured in turn. `ratio` is that of the rounds, which need not be their
    quotient. `is_most` where the ratio must not be more than the bar."""

    what: str
    ours: str
    limit: str
    ratio: float
    bar: float
    spread: str
    is_most: bool = False

    @property
    def is_reached(self):
        return self.ratio <= self.bar if self.is_most else self.ratio >= self.bar

    @property
    def cells(self):
        sign = "<=" if self.is_most else ">="
        verdict = "reached" if self.is_reached else "SHORT"
        return [self.what, self.ours, self.limit, f"{self.ratio:.3f}", f"{sign} {self.bar}", self.spread, verdict]


class Bench:
    """One model of random weights on one number of threads."""

    def __init__(self, model, threads, repeats):
        self.model, self.threads, self.repeats = model, threads, repeats
        # Nothing is taken from texts that were read before: each prompt is to be read whole.
        config = model.engine_config.replace(num_threads=threads, prefix_cache=False)
        self.engine = bitnet.InferenceEngine(config)
        self.buffer = None

    def tokens(self, n, seed=0):
        return np.random.default_rng(seed).integers(0, self.model.config.vocab_size, n).tolist()

    def read_limit(self):
        if self.buffer is None:
            self.buffer = machine.ReadBandwidth(max(128 << 20, 2 * machine.describe().last_level_cache_bytes))
        return max(self.buffer.read(self.threads) for _ in range(LIMIT_TRIES))

    def multiply_limit(self):
        return max(machine.multiply_peak(self.threads) or 0.0 for _ in range(LIMIT_TRIES))

    def prompt_s(self, n):
        """Seconds to read a prompt."""
        ids, start = self.tokens(n), time.perf_counter()
        self.engine.infer(self.model, ids, last_only=True)
        return time.perf_counter() - start

    def token_s(self, depth, n, sequences=1):
        """Seconds of a step that gives each of some sequences a token, after prompts of `depth` tokens."""
        config = bitnet.GenerationConfig(max_new_tokens=n + 1, eos_token_id=[])
        prompts = [self.tokens(depth, seed) for seed in range(sequences)]
        done = self.engine.generate(self.model, prompts, config)
        for one in done:
            if one.error is not None:
                raise one.error
        return max(one.generate_s for one in done) / n

    def bytes_of_a_step(self, depth):
        kept = self.model.program.page_bytes / PAGE_TOKENS * depth
        return self.model.weight_bytes + head_bytes(self.model) + kept

    def decode(self, n=128):
        self.token_s(1, 2)
        limits, seconds = [], []
        for _ in range(self.repeats):
            limits.append(self.read_limit())
            seconds.append(self.token_s(1, n))
        nbytes = self.bytes_of_a_step(n / 2)
        ratios = [nbytes / s / limit for s, limit in zip(seconds, limits, strict=True)]
        yield Row(
            f"decode, tg{n}, {self.threads} threads, {self.model.engine_config.packing}",
            f"{1 / median(seconds):.1f} tokens/s = {nbytes / median(seconds) / 1e9:.1f} GB/s",
            f"read {median(limits) / 1e9:.1f} GB/s", median(ratios), 0.88, spread(ratios),
        )  # fmt: skip

    def prefill(self, n=512):
        self.prompt_s(n)
        limits, seconds = [], []
        for _ in range(self.repeats):
            limits.append(self.multiply_limit())
            seconds.append(self.prompt_s(n))
        work = ternary_parameters(self.model.config) * n
        ratios = [work / s / limit for s, limit in zip(seconds, limits, strict=True)]
        yield Row(
            f"prefill, pp{n}, {self.threads} threads, {self.model.engine_config.packing}",
            f"{n / median(seconds):.1f} tokens/s = {work / median(seconds) / 1e9:.0f} GMAC/s",
            f"{machine.multiply_instruction()} {median(limits) / 1e9:.0f} GMAC/s", median(ratios), 0.94, spread(ratios),
        )  # fmt: skip

    def batch(self, sequences=16, n=32):
        # Prompts so short that one step reads them all: what follows are steps of all sequences and nothing else.
        self.token_s(4, 2, sequences)
        alone, together = [], []
        for _ in range(self.repeats):
            alone.append(1 / self.token_s(4, n))
            together.append(sequences / self.token_s(4, n, sequences))
        yield versus(f"batch, {sequences} sequences, {self.threads} threads", together, alone, "alone", 2.8)

    def long(self, depth=3968, n=32):
        depth = min(depth, self.model.config.max_position_embeddings - n - 2)
        whole = depth + 128
        self.token_s(128, 2)
        near, far = [], []
        for _ in range(max(1, self.repeats // 2)):
            near.append(1 / self.token_s(96, n))
            far.append(1 / self.token_s(depth, n))
        how = f"{self.threads} threads, {self.model.engine_config.kv_dtype} cache"
        yield versus(f"long, tg at {depth} tokens, {how}", far, near, "tg at 128", 0.75)
        short, lengthy = [], []
        whole = min(whole, self.model.config.max_position_embeddings)
        for _ in range(max(1, self.repeats // 2)):
            short.append(512 / self.prompt_s(512))
            lengthy.append(whole / self.prompt_s(whole))
        yield versus(f"long, pp{whole}, {how}", lengthy, short, "pp512", 0.85)

    def lookup(self, n=96):
        """An answer that copies its prompt, which stands for an edit: with guesses and without, in turn."""
        prompt = self.tokens(128)

        def copy(ids, logits):
            logits[prompt[(len(ids) - len(prompt)) % len(prompt)]] = np.float32(1e9)

        seconds = {None: [], 10: []}
        for _ in range(self.repeats):
            for most, taken in seconds.items():
                config = bitnet.GenerationConfig(max_new_tokens=n, eos_token_id=[], prompt_lookup_num_tokens=most)
                done = self.engine.generate(self.model, prompt, config, logits_processor=copy)
                if done.tokens != prompt[:n]:
                    raise AssertionError("guesses changed the answer")
                taken.append((n - 1) / done.generate_s)
        yield versus(f"prompt lookup, a copy, {self.threads} threads", seconds[10], seconds[None], "without", 1.5)


def versus(what, ours, other, name, bar):
    """Compare speeds that were measured in turn."""
    ratios = [a / b for a, b in zip(ours, other, strict=True)]
    return Row(what, f"{median(ours):.1f} tokens/s", f"{name} {median(other):.1f}", median(ratios), bar, spread(ratios))


def step(threads):
    """What a token of the bundled model costs beyond its arithmetic, sampling and text included."""
    from bench_step import ARITHMETIC, timed_steps

    times, kinds, wall = timed_steps(threads)
    taken = np.median(times, axis=0)
    work = sum(one for one, kind in zip(taken[1:-1], kinds, strict=True) if kind in ARITHMETIC)
    ours = f"{wall:.0f} us a token"
    yield Row(f"step, us, {threads} threads", ours, f"arithmetic {work:.0f} us", wall - work, 30, "", is_most=True)


def median(values):
    return statistics.median(values)


def spread(values):
    return f"{min(values):.3f} to {max(values):.3f}"


def check_exact(model):
    """The same bits on one thread and on two, at once and cut."""
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, 40).tolist()
    engines = [bitnet.InferenceEngine(model.engine_config.replace(num_threads=n)) for n in (1, 2)]
    whole, again = (engine.infer(model, ids, last_only=True) for engine in engines)
    alone = engines[0].infer_batch(model, [ids[:7], ids, ids[:33]], last_only=True)[1]
    if not (np.array_equal(whole, again) and np.array_equal(whole, alone)):
        raise AssertionError("logits differ between numbers of threads, or alone and in a batch: nothing was timed")


CHECKS = ("decode", "prefill", "batch", "long", "lookup", "step")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)} (default: all)")
    parser.add_argument("--shape", default="2b4t", help="of the random weights (default: 2b4t)")
    parser.add_argument("--packing", default="auto", choices=("auto", "i2", "t5"))
    parser.add_argument("--kv-dtype", default="float16", choices=("float16", "float32", "int8"))
    parser.add_argument("-t", "--threads", type=int, action="append", help="repeatable (default: what may be used)")
    parser.add_argument("-r", "--repeats", type=int, default=5)
    args = parser.parse_args()
    if unknown := [name for name in args.checks if name not in CHECKS]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(CHECKS)}")
    checks, rows = args.checks or CHECKS, []
    threads = args.threads or [machine.default_num_threads()]
    if set(checks) - {"step"}:
        config = bitnet.EngineConfig(num_threads=max(threads), packing=args.packing, kv_dtype=args.kv_dtype)
        model = bitnet.random_model(args.shape, config)
        check_exact(model)
        for count in threads:
            bench = Bench(model, count, args.repeats)
            for name in checks:
                rows += show(getattr(bench, name)()) if name != "step" else []
    for count in threads:
        rows += show(step(count)) if "step" in checks else []
    found = machine.describe()
    print(
        f"{found.cpu}, {found.cpus} CPUs, {found.isa}, bitnet {bitnet.__version__}, {time.strftime('%Y-%m-%d')}"
    )
    return 0 if all(row.is_reached for row in rows) else 1


def show(rows):
    found = list(rows)
    for row in found:
        print("| " + " | ".join(row.cells) + " |", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
