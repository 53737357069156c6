"""Pages of keys and values: who has which.

A page holds the keys and values of 64 positions of one sequence, in all layers. Pages come from the core's memory
one by one and are kept for reuse, so a cache takes what its sequences need and no more.
"""

import numpy as np

from bitnet._core.memory import new_block
from bitnet._core.program import PAGE_TOKENS

__all__ = ["KVCache", "Sequence"]


class KVCache:
    """The free pages of one model's cache.

    Parameters
    ----------
    page_bytes : int
        Of `Program.page_bytes`.
    """

    def __init__(self, page_bytes):
        self.page_bytes = page_bytes
        self._free = []

    def take(self):
        return self._free.pop() if self._free else new_block(self.page_bytes, "keys and values", "kv")

    def give(self, pages):
        self._free.extend(pages)


class Sequence:
    """The keys and values of one sequence.

    Attributes
    ----------
    length : int
        Tokens that are in the cache.
    table : ndarray of uint64, shape (pages,)
        The addresses of its pages.
    """

    def __init__(self, cache):
        self._cache = cache
        self._pages = []
        self.length = 0
        self.table = np.empty(0, np.uint64)

    def reserve(self, length):
        """Have pages for so many positions."""
        while len(self._pages) * PAGE_TOKENS < length:
            self._pages.append(self._cache.take())
        if len(self.table) != len(self._pages):
            self.table = np.array([page.address for page in self._pages], np.uint64)

    def rewind(self, length):
        """Forget all but the first `length` tokens."""
        self.length = min(self.length, length)
        keep = -(-self.length // PAGE_TOKENS)
        self._cache.give(self._pages[keep:])
        del self._pages[keep:]
        self.table = self.table[:keep].copy()

    def close(self):
        """Give all pages back."""
        self.rewind(0)
