"""Pages of keys and values: who has which, and which of them begin a text that has been read before.

A page holds the keys and values of 64 positions of one sequence, in all layers. Pages come from the core's memory
one by one and are kept for reuse, so a cache takes what its sequences need and no more.

What a page holds depends on the tokens up to its last one and on nothing else, to the bit. So pages that are full, and
the last ones of texts that have ended, are remembered in a tree by their tokens: a sequence that begins with the same
tokens takes these pages instead of computing them. Pages in use are counted; those that nobody uses stay until room is
needed, and the one that was used longest ago goes first.
"""

import numpy as np

from bitnet._core.batch import PageTable
from bitnet._core.memory import new_block
from bitnet._core.program import PAGE_TOKENS
from bitnet.errors import MemoryError

__all__ = ["KVCache", "Sequence"]

LOOKED_AT = 64  # pages that may begin like the rest of a text; the newest ones are compared with it


class Page:
    """A page: its memory, how many sequences use it, and where it is in the tree of texts, if it is there."""

    __slots__ = ("block", "node", "uses")

    def __init__(self, block):
        self.block, self.uses, self.node = block, 1, None


class Node:
    """A place in the tree of texts: up to 64 tokens that follow those of its parent, and their page."""

    __slots__ = ("children", "ids", "page", "parent", "pending")

    def __init__(self, parent, ids, page):
        self.parent, self.ids, self.page = parent, ids, page
        self.children = {}  # by the bytes of their tokens, the newest last; those with fewer than 64 have none
        self.pending = {}  # tokens of children that a sequence is computing


class KVCache:
    """The pages of one model's sequences.

    Parameters
    ----------
    page_bytes : int
        Of `Program.page_bytes`.
    limit : int, optional
        The most pages; None for as many as there is memory for.
    keep : int, optional
        Up to how many pages more memory is taken although there are pages that nobody uses; None for any number.
    shares : bool, optional
        Whether texts are remembered.

    Attributes
    ----------
    pages : int
        That have memory.
    """

    def __init__(self, page_bytes, limit=None, keep=None, shares=True):
        self.page_bytes, self.limit, self.keep, self.shares = page_bytes, limit, keep, shares
        self.pages = 0
        self._free = []
        self._idle = {}  # nodes whose pages nobody uses, by the time of their last use; children come before parents
        self.root = Node(None, b"", None)

    @property
    def available(self):
        """Pages that can be had without taking one from a sequence; infinite where there is no limit."""
        return float("inf") if self.limit is None else self.limit - self.pages + len(self._free) + len(self._idle)

    @property
    def used(self):
        """Pages that sequences use."""
        return self.pages - len(self._free) - len(self._idle)

    def take(self):
        """Give a page that nobody uses.

        Returns
        -------
        Page

        Raises
        ------
        MemoryError
            If there is none, and no more may be or can be made.
        """
        if self._free:
            return Page(self._free.pop())
        is_full = self.limit is not None and self.pages >= self.limit
        if self._idle and (is_full or (self.keep is not None and self.pages >= self.keep)):
            return Page(self._forget_oldest())
        if is_full:
            raise MemoryError.cache_full(self.limit, PAGE_TOKENS)
        try:
            block = new_block(self.page_bytes, "keys and values", "kv")
        except MemoryError:
            if not self._idle:
                raise
            return Page(self._forget_oldest())
        self.pages += 1
        return Page(block)

    def use(self, page):
        """Count one more user of a page of the tree."""
        if page.uses == 0:
            del self._idle[page.node]
        page.uses += 1

    def give(self, page):
        """Count one user less."""
        page.uses -= 1
        if page.uses:
            return
        if page.node is not None:
            self._idle[page.node] = None
        else:
            self._free.append(page.block)

    def forget(self):
        """Remember no text any more, and give all pages back that nobody uses."""
        while self._idle:
            self._forget_oldest()
            self.pages -= 1
        self.pages -= len(self._free)
        self._free.clear()

    def _forget_oldest(self):
        node = next(iter(self._idle))
        del self._idle[node]
        del node.parent.children[node.ids]
        node.page.node = None
        return node.page.block

    def _remember(self, parent, ids, page):
        """Put a page into the tree, where no such one is."""
        page.node = parent.children[ids] = Node(parent, ids, page)
        return page.node


class Sequence:
    """The keys and values of one sequence.

    Attributes
    ----------
    length : int
        Tokens that are in the cache.
    shared : int
        Tokens that were found there instead of computed.
    pages : PageTable
    table : ndarray of uint64, shape (pages,)
        The addresses of its pages.
    """

    def __init__(self, cache):
        self._cache = cache
        self._pages = []
        self.length = self.shared = 0
        self.pages = PageTable()
        self.room = 0  # positions there are pages for
        self._node, self._remembered = cache.root, 0  # of the last page that is in the tree, and how many are
        self.may_write_shared = False
        self._pending = None

    @property
    def blocks(self):
        return [page.block for page in self._pages]

    @property
    def table(self):
        return self.pages.addresses

    def reserve(self, length):
        """Have pages for so many positions, which nobody else sees behind the sequence's length.

        Raises
        ------
        MemoryError
            If there are none; those that were found stay.
        """
        if self.may_write_shared and length > self.length:
            self._own_last_page()
        while self.room < length:
            self._append(self._cache.take())

    def _append(self, page):
        """Go on in a page, of which this sequence has been counted as a user."""
        try:
            self.pages.append(page.block)
        except BaseException:  # for want of memory for the table
            self._cache.give(page)
            raise
        self._pages.append(page)
        self.room += PAGE_TOKENS

    def _own_last_page(self):
        """Copy the page that the next token is written to, if it is in the tree."""
        at = self.length // PAGE_TOKENS
        if self.length % PAGE_TOKENS and self._pages[at].node is not None:
            page = self._copied(self._pages[at])
            rest, self._pages = self._pages[at + 1 :], self._pages[:at]
            self._cache.give(self._replaced)
            self.pages.truncate(at)
            self.room = at * PAGE_TOKENS
            for one in (page, *rest):
                self._append(one)
        self.may_write_shared = False

    def _copied(self, page):
        copy = self._cache.take()
        np.frombuffer(copy.block, np.uint8)[:] = np.frombuffer(page.block, np.uint8)
        self._replaced = page
        return copy

    def rewind(self, length):
        """Forget all but the first `length` tokens."""
        if length < self.length:
            self.length = max(length, 0)
            self.may_write_shared = True
            self._await(None)
        keep = -(-self.length // PAGE_TOKENS)
        for page in self._pages[: keep - 1 if keep else None : -1]:  # the last one first: see `KVCache._idle`
            self._cache.give(page)
        del self._pages[keep:]
        self.pages.truncate(keep)
        self.room = keep * PAGE_TOKENS
        while self._remembered * PAGE_TOKENS > self.length:
            self._remembered -= 1
            self._node = self._node.parent
        self.shared = min(self.shared, self.length)

    def close(self, ids=None):
        """Give all pages back; where the tokens are given, what they hold is remembered."""
        if ids is not None and self._cache.shares:
            self.remember(ids)
            self._remember_tail(ids)
        self._await(None)  # also where nothing was computed yet: others would wait for it for ever
        self.rewind(0)

    # ---- texts that begin alike

    def find(self, ids):
        """Take pages of a text that begins with the same tokens, from where this one's end.

        Parameters
        ----------
        ids : ndarray of int32, shape (tokens,)
            All tokens of the sequence. The last one is never found, because something has to be computed.

        Returns
        -------
        bool
            Whether another sequence is just computing the next page; then it is better to wait.
        """
        cache, before = self._cache, self.length
        if not cache.shares or self.length % PAGE_TOKENS or self._remembered * PAGE_TOKENS != self.length:
            return False
        last = len(ids) - 1
        while self.length + PAGE_TOKENS <= last:
            key = ids[self.length : self.length + PAGE_TOKENS].tobytes()
            node = self._node.children.get(key)
            if node is None:
                break
            if self.room > self.length:  # reserved, and not written
                self.rewind(self.length)
            cache.use(node.page)
            self._append(node.page)
            self._node, self._remembered = node, self._remembered + 1
            self.length += PAGE_TOKENS
        owner = None
        if self.length + PAGE_TOKENS <= last:
            key = ids[self.length : self.length + PAGE_TOKENS].tobytes()
            owner = self._node.pending.get(key)
            if owner is None or owner is self:
                self._await((self._node, key))
        if owner is None or owner is self:
            self._find_tail(ids[self.length : last])
        self.shared += self.length - before
        return owner is not None and owner is not self

    def abandon(self):
        """Let others compute the next page: this sequence does not."""
        self._await(None)

    def _await(self, pending):
        """Let others know which page this sequence is computing."""
        if self._pending is not None:
            node, key = self._pending
            if node.pending.get(key) is self:
                del node.pending[key]
        self._pending = pending
        if pending is not None:
            pending[0].pending[pending[1]] = self

    def _find_tail(self, ids):
        """Copy a page that begins like the tokens that are left."""
        if not self._node.children or not len(ids):
            return
        most, found = 0, None
        for number, node in enumerate(reversed(self._node.children.values())):
            if number == LOOKED_AT:
                break
            theirs = np.frombuffer(node.ids, np.int32)
            some = min(len(theirs), len(ids))
            same = theirs[:some] == ids[:some]
            length = some if same.all() else int(same.argmin())
            if length > most:
                most, found = length, node
        if found is None:
            return
        is_idle = found.page.uses == 0
        if is_idle:
            self._cache.use(found.page)  # or the copy might take its memory
        try:
            self.reserve(self.length + 1)
            target = self._pages[self.length // PAGE_TOKENS]
            np.frombuffer(target.block, np.uint8)[:] = np.frombuffer(found.page.block, np.uint8)
            self.length += most
        finally:
            if is_idle:
                self._cache.give(found.page)

    def remember(self, ids):
        """Put the pages that have become full into the tree.

        Parameters
        ----------
        ids : ndarray of int32, shape (tokens,)
            The tokens of the sequence; at least as many as are in the cache.
        """
        cache = self._cache
        if not cache.shares:
            return
        while (self._remembered + 1) * PAGE_TOKENS <= self.length:
            at = self._remembered
            key = ids[at * PAGE_TOKENS : (at + 1) * PAGE_TOKENS].tobytes()
            node = self._node.children.get(key)
            if node is None:
                node = cache._remember(self._node, key, self._pages[at])
            elif node.page is not self._pages[at]:  # two have computed the same: one of them is enough
                cache.use(node.page)
                rest, mine = self._pages[at + 1 :], self._pages[at]
                del self._pages[at:]
                self.pages.truncate(at)
                self.room = at * PAGE_TOKENS
                for one in (node.page, *rest):
                    self._append(one)
                cache.give(mine)
            self._node, self._remembered = node, at + 1
        if self._pending is not None and self._pending[0] is not self._node:
            self._await(None)

    def _remember_tail(self, ids):
        """The last page, which is not full; it is only ever copied."""
        key = ids[self._remembered * PAGE_TOKENS : self.length].tobytes()
        page = self._pages[self._remembered] if key else None
        if page is not None and page.node is None and key not in self._node.children:
            self._cache._remember(self._node, key, page)
