"""Many prompts at once: so many wait that the queue has room for others, and what comes of them is put in order."""

from collections import deque

from bitnet.completion import Completion
from bitnet.errors import BitNetError, QueueFullError
from bitnet.request import Inbox

__all__ = ["complete_all", "read_all"]


def complete_all(scheduler, makers, on_piece=None):
    """Answer many prompts.

    Parameters
    ----------
    scheduler : Scheduler
    makers : list of callable
        Each makes a `Generation` of an inbox.
    on_piece : callable, optional
        Called with each `Piece`.

    Returns
    -------
    list of Completion
        In order. What could not begin, or failed, says so in its own.
    """
    inbox = Inbox(wants_pieces=on_piece is not None)
    found, requests = [Completion() for _ in makers], [None] * len(makers)

    def refused(number, error):
        found[number] = Completion(finish_reason="error", error=error)

    def begun(number, request):
        found[number], requests[number] = request.completion, request

    for _ in _run_all(scheduler, inbox, makers, begun, refused):
        while inbox.pieces:
            piece = inbox.pieces.popleft()
            request = requests[piece.number]
            request.read += 1
            if request.is_stalled:
                scheduler.changed()
            on_piece(piece)
    return found


def read_all(scheduler, makers):
    """Compute the logits of many texts.

    Parameters
    ----------
    scheduler : Scheduler
    makers : list of callable
        Each makes a `Reading` of an inbox.

    Returns
    -------
    list of ndarray
        In order.

    Raises
    ------
    InferenceError
        If one of them fails.
    """
    requests = []

    def refused(_, error):
        raise error

    for _ in _run_all(scheduler, Inbox(wants_pieces=False), makers, lambda _, one: requests.append(one), refused):
        for request in requests:
            if request.error is not None:
                raise request.error
    return [request.logits for request in requests]


def _run_all(scheduler, inbox, makers, begun, refused):
    """Make and run requests; gives control back whenever there is something in the inbox."""
    todo = deque(enumerate(makers))
    try:
        while todo or inbox.requests:
            while todo and len(inbox.requests) < 2 * scheduler.max_batch_size:
                number, make = todo[0]
                try:
                    request = make(inbox)
                    scheduler.submit(request)
                    begun(number, request)
                except QueueFullError as error:
                    if inbox.requests:
                        break  # one of ours will end
                    refused(number, error)
                except BitNetError as error:
                    refused(number, error)
                todo.popleft()
            inbox.until = max(len(inbox.requests) - 1, 0) if todo else 0
            scheduler.drive(inbox)
            yield
    finally:
        scheduler.cancel(list(inbox.requests))
