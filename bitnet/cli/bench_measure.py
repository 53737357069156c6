"""What ``bitnet bench`` measures of a model, beside the limits of the machine."""

import random
import statistics
import time
from dataclasses import dataclass

import bitnet
from bitnet import machine
from bitnet.cli.session import interruptible, peak_rss_bytes

__all__ = ["PAGE_TOKENS", "Result", "Test", "head_bytes", "measure", "parameters", "ternary_parameters"]

# At least twice the last-level cache, as for the kernels; enough to read past it.
BUFFER_BYTES = 128 << 20
LIMIT_TRIES = 5
PAGE_TOKENS = 64  # of the cache: only whole pages are taken over
HEAD_ITEM_BYTES = {"int8": 1, "float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Test:
    """What is measured.

    Attributes
    ----------
    n_prompt, n_gen : int
        Tokens of the prompt, or tokens generated; the other is 0.
    n_depth : int
        Tokens before them, which are in the cache already.
    n_parallel : int
        Sequences that generate together.
    """

    n_prompt: int
    n_gen: int
    n_depth: int = 0
    n_parallel: int = 1

    @property
    def name(self) -> str:
        """As ``"tg128 @ d512 x 16"``."""
        name = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return name + f" @ d{self.n_depth}" * bool(self.n_depth) + f" x {self.n_parallel}" * (self.n_parallel > 1)

    @property
    def context(self) -> int:
        """Positions that it needs."""
        if self.n_gen:  # a generated token has one before it, and the first one comes with the prompt
            return max(1, self.n_depth) + self.n_gen + 1
        return self.n_depth + self.n_prompt + bool(self.n_depth)


@dataclass(frozen=True)
class Result:
    """What was measured of one test on one number of threads.

    Attributes
    ----------
    test : Test
    threads : int
    seconds : list of float
        Of each repeat.
    read_bytes_per_s, multiply_accumulates_per_s : list of float
        The limits, measured before each repeat; empty where there is none.
    nbytes : int
        What a repeat that generates reads at least: for each step the weights, the head, and the cache.
    work : int
        Multiply-accumulates with ternary weights of a repeat.
    joules : list of float
        What the processor took in each repeat; empty where the system does not tell.
    """

    test: Test
    threads: int
    seconds: list[float]
    read_bytes_per_s: list[float]
    multiply_accumulates_per_s: list[float]
    nbytes: int
    work: int
    joules: list[float]

    @property
    def tokens(self) -> int:
        """Of a repeat, in all sequences."""
        return (self.test.n_prompt + self.test.n_gen) * self.test.n_parallel

    @property
    def tokens_per_s(self) -> list[float]:
        """The speed of each repeat."""
        return [self.tokens / s for s in self.seconds]

    @property
    def mean(self) -> float:
        """The mean speed, in tokens a second."""
        return statistics.fmean(self.tokens_per_s)

    @property
    def deviation(self) -> float:
        """The standard deviation of the speed; 0 for one repeat."""
        return statistics.stdev(self.tokens_per_s) if len(self.seconds) > 1 else 0.0

    @property
    def read_share(self) -> float | None:
        """Of generating: the share of the read bandwidth."""
        return _share(self.nbytes, self.seconds, self.read_bytes_per_s) if self.test.n_gen else None

    @property
    def peak_share(self) -> float | None:
        """The share of the multiply peak; of one sequence that generates, which is not bound by it, none."""
        is_bound = self.test.n_prompt or self.test.n_parallel > 1
        return _share(self.work, self.seconds, self.multiply_accumulates_per_s) if is_bound else None

    @property
    def joules_per_token(self) -> float | None:
        """The median."""
        return statistics.median(self.joules) / self.tokens if self.joules else None


def _share(amount: int, seconds: list[float], limits: list[float]) -> float | None:
    if not limits:
        return None
    return statistics.median(amount / s / limit for s, limit in zip(seconds, limits, strict=True))


def measure(
    model: bitnet.Model, config: bitnet.EngineConfig, tests: list[Test], threads: list[int], repeats: int
) -> tuple[list[Result], int]:
    """Measure a model.

    Parameters
    ----------
    model : Model
    config : EngineConfig
    tests : list of Test
    threads : list of int
    repeats : int

    Returns
    -------
    results : list of Result
    peak_rss : int
        The most memory that loading and each test took, in bytes.
    """
    # First everything once, without the limits: their buffer is no memory that the model needs.
    for count in threads:
        for test in tests:
            with _Runner(model, config, test, count) as runner:
                runner.run(0, min(test.n_gen, 2))
    peak_rss = peak_rss_bytes()
    buffer = machine.ReadBandwidth(max(BUFFER_BYTES, 2 * machine.describe().last_level_cache_bytes))
    results = []
    for count in threads:
        for test in tests:
            with _Runner(model, config, test, count) as runner:
                runner.run(0, min(test.n_gen, 2))
                seconds, joules, reads, peaks = [], [], [], []
                for repeat in range(1, repeats + 1):
                    # The best of a few, as each takes milliseconds: a limit that a neighbour lowered is none.
                    reads.append(max(buffer.read(count) for _ in range(LIMIT_TRIES)))
                    peaks.append(max(machine.multiply_peak(count) or 0.0 for _ in range(LIMIT_TRIES)))
                    meter = machine.EnergyMeter()
                    seconds.append(runner.run(repeat, test.n_gen))
                    joules.append(meter.joules())
            steps, kept = test.n_gen, test.n_parallel * (test.n_depth + test.n_gen / 2)
            cache = model.program.page_bytes / PAGE_TOKENS * kept
            work = ternary_parameters(model.config) * (test.n_prompt + test.n_gen) * test.n_parallel
            nbytes = int(steps * (model.weight_bytes + head_bytes(model) + cache))
            known = [j for j in joules if j is not None]
            results.append(Result(test, count, seconds, reads, [p for p in peaks if p], nbytes, work, known))
    return results, peak_rss


class _Runner:
    """One test on an engine of its own."""

    def __init__(self, model: bitnet.Model, config: bitnet.EngineConfig, test: Test, threads: int) -> None:
        self.model, self.test = model, test
        # A prompt after others takes them from the cache; everywhere else nothing may be taken from a run before.
        shares = bool(test.n_prompt and test.n_depth)
        self.engine = bitnet.InferenceEngine(config.replace(num_threads=threads, prefix_cache=shares))

    def __enter__(self) -> "_Runner":
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def _tokens(self, n: int, seed: int) -> list[int]:
        generator = random.Random(seed)  # not NumPy's: its libraries would count as what a model takes
        return [generator.randrange(self.model.config.vocab_size) for _ in range(n)]

    def run(self, repeat: int, n_gen: int) -> float:
        """Seconds."""
        test, engine = self.test, self.engine
        one = bitnet.GenerationConfig(max_new_tokens=1, eos_token_id=[])
        if test.n_prompt and not test.n_depth:
            tokens = self._tokens(test.n_prompt, repeat)
            start = time.perf_counter()
            interruptible(engine, lambda: engine.infer(self.model, tokens, last_only=True))
            return time.perf_counter() - start
        if test.n_prompt:
            before = self._tokens(test.n_depth, 0)
            interruptible(engine, lambda: engine.generate(self.model, before, one))
            tokens = before + self._tokens(test.n_prompt, repeat + 1)
            done = interruptible(engine, lambda: engine.generate(self.model, tokens, one))
            # What the cache did not have counts, too: a share of a page less than the text before.
            return float(done.prompt_s * test.n_prompt / (len(tokens) - done.cached_tokens))
        # The first token comes with the prompt; each of the others is one step, with the choice of the most likely.
        endless = bitnet.GenerationConfig(max_new_tokens=n_gen + 1, eos_token_id=[])
        prompts = [self._tokens(max(test.n_depth, 1), seed) for seed in range(test.n_parallel)]
        found = interruptible(engine, lambda: engine.generate(self.model, prompts, endless))
        for completion in found:
            if completion.error is not None:
                raise completion.error
        return max(float(completion.generate_s) for completion in found)


# ---- what a model has


def ternary_parameters(config: bitnet.ModelConfig) -> int:
    """Count the ternary weights.

    Parameters
    ----------
    config : ModelConfig

    Returns
    -------
    int
    """
    width, kv_heads = config.head_dim or 0, config.num_key_value_heads or 0  # stored as numbers, never as None
    queries, keys = config.num_attention_heads * width, kv_heads * width
    layer = config.hidden_size * (2 * queries + 2 * keys + 3 * config.intermediate_size)
    return int(config.num_hidden_layers * layer)


def head_bytes(model: bitnet.Model) -> int:
    """Count the bytes of the output head in memory.

    Parameters
    ----------
    model : Model

    Returns
    -------
    int
    """
    dtype, config = model.engine_config.head_dtype, model.config
    scales = 4 * config.vocab_size if dtype == "int8" else 0
    return int(config.vocab_size * config.hidden_size * HEAD_ITEM_BYTES[dtype] + scales)


def parameters(model: bitnet.Model) -> int:
    """Count all parameters, those of norms by what the program computes.

    Parameters
    ----------
    model : Model

    Returns
    -------
    int
    """
    config, program = model.config, model.program
    tables = 1 if config.tie_word_embeddings else 2
    norms = sum(width for kind, width in zip(program.kinds, program.widths, strict=True) if kind == "rms_norm")
    return int(ternary_parameters(config) + tables * config.vocab_size * config.hidden_size + norms)
