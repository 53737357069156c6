"""Guesses of the next tokens from what a text has said before: prompt lookup, which loses nothing.

Where the last tokens of a text occurred earlier in it, what followed them there is run together with the next token,
and kept as far as the tokens that are chosen by the logits are the guessed ones. Each token's numbers are the same bits
alone and beside others, and each is chosen as ever, so the answer is the one without guesses.

Saxena, Prompt Lookup Decoding, 2023 (github.com/apoorvumang/prompt-lookup-decoding).
"""

import numpy as np
import numpy.typing as npt

__all__ = ["Costs", "Lookup"]

Ids = npt.NDArray[np.int32]

LONGEST, SHORTEST = 3, 2  # tokens of a place that is looked up
LEARNING = 0.2  # share of the newest observation in an average
PATIENCE = 32  # chances that pass before one is taken again to see whether it pays now


class Costs:
    """How long steps of so many tokens take, as measured."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def add(self, tokens: int, seconds: float) -> None:
        """Take note of a step."""
        known = self._seconds.get(tokens)
        # A step that others slowed says little: what is much longer than the others counts as twice them.
        self._seconds[tokens] = seconds if known is None else known + LEARNING * (min(seconds, 2 * known) - known)

    def ratio(self, more: int, fewer: int) -> float | None:
        """How much longer a step of more tokens takes; None where that is not known yet."""
        a, b = self._seconds.get(more), self._seconds.get(fewer)
        return None if a is None or b is None else a / b


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

    def pays(self, guesses: int, costs: Costs, others: int) -> bool:
        """Whether a step with so many guesses, beside others' tokens, gives more tokens a second than one without."""
        ratio = costs.ratio(others + 1 + guesses, others + 1)
        if ratio is None:
            return True  # to see
        expected = sum(self._share**i for i in range(guesses + 1))
        # Others only wait longer.
        if (others + expected) / ratio > others + 1:
            self._passed = 0
            return True
        self._passed += 1
        if self._passed > PATIENCE:
            self._passed = 0
            return True
        return False

    def learn(self, guesses: int, accepted: int) -> None:
        """Take note of how many of the guesses were right."""
        self.guessed += guesses
        self.accepted += accepted
        # Those behind the first wrong one say nothing.
        tried = min(guesses, accepted + 1)
        self._share += LEARNING * (accepted / tried - self._share)
