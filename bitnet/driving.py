"""Who makes the steps: a driver's seat, and how those who wait are woken.

A consumer that waits for a token and finds nobody driving drives: it makes steps for all requests until there is
something for itself. Others wait meanwhile, and one of them goes on when it leaves. So one stream alone costs no change
of threads. Only for consumers that may not wait, those of asyncio, a thread drives, for as long as they have requests.
"""

import threading
import time
from collections import deque

from bitnet.request import Inbox

__all__ = ["Driving", "Turn"]


class Turn:
    """A lock that those who wait get in the order in which they came. A context manager.

    An ordinary lock would go to the one who gives it back and asks again, as long as it does.
    """

    def __init__(self):
        self.renew()

    def renew(self):
        """Begin in a child process, where nobody waits."""
        self._guard, self._is_taken, self._waiting = threading.Lock(), False, deque()

    def __enter__(self):
        with self._guard:
            if not self._is_taken:
                self._is_taken = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        try:
            mine.acquire()
        except BaseException:
            with self._guard:
                if mine in self._waiting:
                    self._waiting.remove(mine)
                    raise
            self.__exit__()  # it had been given to us
            raise

    def __exit__(self, *_):
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_taken = False


class Driving:
    """What a scheduler has of this: `drive` for those who wait, `call` for those who do not.

    It has `_step`, which returns False where there is nothing to do, and `_arrange`, which takes note of changes.
    """

    def _begin_driving(self):
        # So that no more arrive than may wait. The garbage collector may close a stream, and so arrange, while this
        # very thread has it.
        self._entrance = threading.RLock()
        self._driving = threading.Lock()
        self._followers = {}  # what to release, and the inbox of who waits for it
        self._sleepers = {}  # the same of those who do not drive
        self._background, self._thread = Inbox(wants_pieces=False), None
        self._is_changed = False

    def changed(self):
        """Make the driver look at the requests again."""
        self._is_changed = True
        if self._followers and not self._driving.locked():
            self._pass_on()

    def tidy(self):
        """Give back what ended requests have, if nobody drives, who would do it."""
        if self._driving.acquire(blocking=False):
            try:
                self._arrange()
            finally:
                self._leave()

    def drive(self, inbox):
        """Return when there is something in an inbox, or all its requests have ended."""
        while not inbox.has_news():
            if self._driving.acquire(blocking=False):
                is_idle = False
                try:
                    while not inbox.has_news() and not is_idle:
                        is_idle = not self._step()
                    if not inbox.requests:
                        self._arrange()  # so that nothing is kept of those that have ended
                except BaseException:
                    self._is_changed = True  # an interrupt, somewhere in a step: whoever is next looks where that was
                    raise
                finally:
                    self._leave(is_idle)
                if not is_idle:
                    return
            self._follow(inbox)

    def _leave(self, is_idle=False):
        self._driving.release()
        # If there is nothing to do, the next one would only wake the one after it.
        if self._followers and (self._is_changed or not is_idle):
            self._pass_on()

    def _pass_on(self):
        """Wake one who waits: nobody drives."""
        for waiter, inbox in list(self._followers.items()):
            if not inbox.has_news() and self._wake(waiter):
                return

    def _wake(self, waiter):
        # Several may want to; the one who takes it out of the dictionary does.
        if self._followers.pop(waiter, None) is None and self._sleepers.pop(waiter, None) is None:
            return False
        waiter.release()
        return True

    def call(self, inbox, waiter):
        """Have a waiter released when there is something in an inbox, and have a thread drive until then.

        Parameters
        ----------
        inbox : Inbox
        waiter : object
            Has ``release()``, which is called by any thread, once at most.

        Returns
        -------
        bool
            False where there is something already; then it is not called.
        """
        self._sleepers[waiter] = inbox
        inbox.waiter = waiter
        with self._entrance:
            for request in list(inbox.requests):
                self._background.requests.add(request)
                if request.has_ended:  # between the two; whoever ended it may have looked for it here before
                    self._leave_background(request)
            if self._background.requests and self._thread is None:
                self._thread = threading.Thread(target=self._drive_in_background, name="bitnet", daemon=True)
                self._thread.start()
        return not inbox.has_news() or self._sleepers.pop(waiter, None) is None

    def call_off(self, waiter):
        """Do not release a waiter any more.

        Parameters
        ----------
        waiter : object
        """
        self._sleepers.pop(waiter, None)

    def _leave_background(self, request):
        """Take note that a request has ended; the thread goes with the last one."""
        background = self._background
        if request in background.requests:
            background.requests.discard(request)
            if background.waiter is not None and background.has_news():
                self._wake(background.waiter)

    def _drive_in_background(self):
        while True:
            self.drive(self._background)
            with self._entrance:
                if not self._background.requests:
                    self._thread = None
                    return

    def _follow(self, inbox):
        """Sleep until there is something, or nobody drives and there is something to do."""
        waiter = threading.Lock()
        waiter.acquire()
        self._followers[waiter] = inbox
        inbox.waiter = waiter
        try:
            # Whoever leaves or changes something after this looks at the followers.
            if inbox.has_news() or (self._is_changed and not self._driving.locked()):
                return
            deadline = inbox.deadline()
            timeout = -1 if deadline is None else min(max(deadline - time.perf_counter(), 0), threading.TIMEOUT_MAX)
            if not waiter.acquire(timeout=timeout):
                self._expire(list(inbox.requests))
        except BaseException:
            if self._followers.pop(waiter, None) is None and not self._driving.locked():
                self._pass_on()  # it was this one that was to drive
            raise
        finally:
            inbox.waiter = None
            self._followers.pop(waiter, None)

    def _expire(self, requests):
        now = time.perf_counter()
        for request in requests:
            if request.deadline is not None and request.deadline <= now:
                request.is_late = self._is_changed = True
