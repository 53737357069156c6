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


def read_all(scheduler, makers, most=None, progress=None):
    """Read many texts.

    Parameters
    ----------
    scheduler : Scheduler
    makers : list of callable
        Each makes a request of an inbox, such as a `Reading`.
    most : int, optional
        How many are in progress together.
    progress : callable, optional
        Called with a list of those that have ended, whenever there are more.

    Returns
    -------
    list of Request
        In order.

    Raises
    ------
    InferenceError
        If one of them fails.
    """
    requests = []

    def refused(_, error):
        raise error

    told = 0
    for _ in _run_all(scheduler, Inbox(wants_pieces=False), makers, lambda _, one: requests.append(one), refused, most):
        ended = [request for request in requests if request.has_ended]
        for request in ended:
            if request.error is not None:
                raise request.error
        if progress is not None and len(ended) > told:
            told = len(ended)
            progress(ended)
    return requests


def _run_all(scheduler, inbox, makers, begun, refused, most=None):
    """Make and run requests; gives control back whenever there is something in the inbox."""
    todo, most = deque(enumerate(makers)), most or 2 * scheduler.max_batch_size
    try:
        while todo or inbox.requests:
            while todo and len(inbox.requests) < most:
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
