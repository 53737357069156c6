"""How many positions of the cache a run attends to, and reads: what recorders are told."""

from typing import Any

import numpy as np

__all__ = ["positions_of"]


def positions_of(positions: Any, starts: Any, windows: tuple[int, ...]) -> tuple[int, int, dict[int, tuple[int, int]]]:
    """Count the positions that the tokens of a run see.

    Parameters
    ----------
    positions : ndarray of int32, shape (tokens,)
        Of each token in its sequence.
    starts : ndarray of int32, shape (tiles + 1,)
        Where each tile of neighbouring tokens that attend together begins, and the end of the last.
    windows : tuple of int
        Of attentions that do not see all positions.

    Returns
    -------
    attended, read : int
        Summed over the tokens; and over the tiles, which read keys and values once for all their tokens.
    within : dict
        The same two numbers for each window.
    """
    seen, starts = positions.astype(np.int64) + 1, starts.astype(np.int64)
    last, within = seen[starts[1:] - 1], {}
    for window in windows:
        before = np.maximum(seen[starts[:-1]] - window, 0)  # a tile's first token sees the first position of all
        within[window] = int(np.minimum(seen, window).sum()), int((last - before).sum())
    return int(seen.sum()), int(last.sum()), within
