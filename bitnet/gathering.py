"""Which tokens of which requests make the next step, and who pauses where pages are missing."""

import logging

from bitnet.request import Request

__all__ = ["Gathering"]

_log = logging.getLogger(__name__)

MAX_LOGITS = 64  # of a step, beside those of decoding: each is a row of the vocabulary's size
MAX_SCORED = 8  # of these, where others are answered: so many are looked at in about the time of their step


class Gathering:
    """What a scheduler has of this: `_gather`, for who drives."""

    def _gather(self):
        """Fill the batch; False where pages are missing, for which somebody had to pause."""
        batch, decoding = self._batch, self._decoding
        batch.clear()
        self._short = (decoding or self._reading)[0]  # until somebody asks for pages: Python may lack memory, too
        if len(decoding) > self._max_tokens:
            decoding = decoding[: self._max_tokens]
            self._decoding, self._parts = [*self._decoding[self._max_tokens :], *decoding], []
        try:
            if self._guesses:
                self._gather_guesses(decoding)
                decoding = ()
            for request in decoding:
                sequence = request.sequence
                length = sequence.length
                if length >= sequence.room or sequence.may_write_shared:
                    self._short = request
                    sequence.reserve(length + 1)
                batch.add_token(sequence.pages, length, request.ids[length], request.leaders)
            if self._reading:
                self._parts = self._parts if self._guesses else [(request, 1, 1) for request in decoding]
                self._gather_prompts(len(self._parts))
            elif not self._guesses and len(self._parts) != len(decoding):  # empty where requests have changed
                self._parts = [(request, 1, 1) for request in decoding]
        except MemoryError as error:  # of the pool, or Python's own
            self._make_room(self._short, error)
            return False
        return True

    def _gather_guesses(self, decoding):
        """Add the next token of each, and what is guessed to come then."""
        batch, self._parts = self._batch, []
        spare = self._max_tokens - len(decoding) - (self._config.prefill_chunk if self._reading else 0)
        for request in decoding:
            sequence = request.sequence
            length, guesses = sequence.length, 0
            if request.lookup is not None and spare > 0:
                # No page is taken from others for a guess.
                room = spare if self.cache.available else min(spare, sequence.room - length - 1)
                guesses = request.guess(room, self._costs, len(decoding) - 1) if room > 0 else 0
                spare -= guesses
            if length + guesses >= sequence.room or sequence.may_write_shared:
                self._short = request
                sequence.reserve(length + 1 + guesses)
            batch.add(sequence.pages, length, request.ids[length : length + 1 + guesses], 1 + guesses, request.leaders)
            self._parts.append((request, 1 + guesses, 1 + guesses))

    def _gather_prompts(self, decoding):
        """Add the next tokens of prompts: half of the room is the oldest one's, then come the shortest."""
        room = self._max_tokens - self._batch.tokens
        chunk = self._config.prefill_chunk
        # Others wait for the end of the step: those who are answered, or whose prompts are short.
        room = min(room, chunk) if decoding else min(room, 2 * chunk) if len(self._reading) > 1 else room
        waiting = sorted(self._reading, key=lambda one: (-one.priority, one.left, one.number))
        oldest = min(waiting, key=Request.order)
        plan = [(oldest, room - room // 2), *((one, room) for one in waiting)]
        counts, logits, later = {}, MAX_LOGITS, []
        for request, most in plan:
            if request not in counts:
                self._short = request
                if request.shares and request.sequence.find(request.ids[: request.findable]):
                    later.append(request)
                    continue
                counts[request] = 0
            more = min(request.left - counts[request], most, room)
            if request.logits_from is not None:
                at = request.sequence.length + counts[request]
                some = min(logits, MAX_SCORED) if decoding and request.is_scored else logits
                more = min(more, max(request.logits_from - at, 0) + some)
                logits -= request.outputs(at, more)
            counts[request] += more
            room -= more
        if not any(counts.values()) and not decoding:  # all wait for a page that another one is computing
            counts[later[0]] = min(later[0].left, room)
        for request, count in counts.items():
            if count:
                sequence = request.sequence
                at = sequence.length
                self._short = request
                sequence.reserve(at + count)
                outputs = request.outputs(at, count)
                self._batch.add(sequence.pages, at, request.ids[at : at + count], outputs, request.leaders)
                self._parts.append((request, count, outputs))

    def _make_room(self, request, error):
        """Have the youngest request pause: it gives its pages back, and begins anew when there are some."""
        others = [one for one in self._running if not one.has_ended and (one.sequence.room or one is request)]
        if others == [request]:
            self._end(request, "error", error)  # it is alone, and there is too little for it
        else:
            victim = max(others, key=lambda one: (one.is_stalled, one.order()))
            victim.sequence.close(victim.ids)
            victim.sequence = None
            victim.paused()
            self.pauses += 1
            self._is_short = True
            _log.debug("request %d pauses: request %d needs a page, and %s", victim.number, request.number, error)
            self._running.remove(victim)
            with self._entrance:
                self._wait(victim)
        self._is_changed = True
