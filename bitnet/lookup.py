"""Guesses of the next tokens from what a text has said before: prompt lookup, which loses nothing.

Where the last tokens of a text occurred earlier in it, what followed them there is run together with the next token,
and kept as far as the tokens that are chosen by the logits are the guessed ones. Each token's numbers are the same bits
alone and beside others, and each is chosen as ever, so the answer is the one without guesses.

Saxena, Prompt Lookup Decoding, 2023 (github.com/apoorvumang/prompt-lookup-decoding).
"""

from bisect import bisect, insort

import numpy as np
import numpy.typing as npt

__all__ = ["Costs", "Lookup"]

Ids = npt.NDArray[np.int32]

LONGEST, SHORTEST = 3, 2  # tokens of a place that is looked up
LEARNING = 0.2  # share of the newest observation in an average
PATIENCE = 32  # chances that pass before one is taken again to see whether it pays now
FIRST_GUESS = 0.1  # what a token more adds to a step, before that was measured: soon corrected, either way


class Costs:
    """How long steps of so many tokens take, as measured."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._known: list[int] = []  # its keys in order

    def add(self, tokens: int, seconds: float) -> None:
        """Take note of a step."""
        known = self._seconds.get(tokens)
        # A step that others slowed says little: what is much longer than the others counts as twice them.
        if known is None:
            insort(self._known, tokens)
        self._seconds[tokens] = seconds if known is None else known + LEARNING * (min(seconds, 2 * known) - known)

    def estimate(self, tokens: int) -> float:
        """How long a step takes; between and beyond what was measured, by a line. Some step was measured."""
        known = self._known
        if tokens in self._seconds:
            return self._seconds[tokens]
        if len(known) == 1:
            return self._seconds[known[0]] * (1 + FIRST_GUESS * max(0, tokens - known[0]))
        above = min(max(1, bisect(known, tokens)), len(known) - 1)
        low, high = known[above - 1], known[above]
        slope = max(0.0, (self._seconds[high] - self._seconds[low]) / (high - low))
        return max(self._seconds[low] + slope * (tokens - low), 0.5 * self._seconds[low])

    def __bool__(self) -> bool:
        return bool(self._seconds)


class Lookup:
    """The guesses of one request.

    Parameters
    ----------
    most : int
        Tokens that are guessed at once, at most.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._places: dict[bytes, int] = {}  # the last tokens -> where what followed them begins; the latest such place
        self._known = 0  # tokens whose places are in there
        self._share = 0.5  # of guessed tokens, how many were right so far
        self._passed = 0  # chances not taken, since it does not pay
        self.guessed = self.accepted = 0

    def _index(self, ids: Ids, count: int) -> None:
        for end in range(max(self._known, SHORTEST), count):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._places[ids[end - length : end].tobytes()] = end
        self._known = max(count, self._known)

    def find(self, ids: Ids, count: int, room: int) -> Ids:
        """Look for a place that goes on.

        Parameters
        ----------
        ids : ndarray of int32
            The text.
        count : int
            Its tokens.
        room : int
            The most that may be guessed.

        Returns
        -------
        ndarray of int32
            A guess of the next tokens; empty where there is none.
        """
        self._index(ids, count)
        room = min(room, self.most)
        for length in range(min(LONGEST, count), SHORTEST - 1, -1):
            at = self._places.get(ids[count - length : count].tobytes())
            if at is not None:
                return ids[at : min(at + room, count)]
        return ids[:0]

    def worth(self, available: int, costs: Costs, others: int) -> int:
        """Say how many guesses give the most tokens a second, in a step beside others' tokens.

        Parameters
        ----------
        available : int
            Guesses that there are.
        costs : Costs
        others : int
            Tokens of others in the step; they only wait longer.

        Returns
        -------
        int
            0 where none pay.
        """
        if not available or not costs:
            return min(available, 1)
        best, most, expected = 0, (others + 1) / costs.estimate(others + 1), 1.0
        for guesses in range(1, available + 1):
            expected += self._share**guesses
            rate = (others + expected) / costs.estimate(others + 1 + guesses)
            if rate > most:
                best, most = guesses, rate
        self._passed = 0 if best else self._passed + 1
        if self._passed > PATIENCE:
            self._passed, best = 0, 1  # to see
        return best

    def learn(self, guesses: int, accepted: int) -> None:
        """Take note of how many of the guesses were right."""
        self.guessed += guesses
        self.accepted += accepted
        # Those behind the first wrong one say nothing.
        tried = min(guesses, accepted + 1)
        self._share += LEARNING * (accepted / tried - self._share)
