"""Up to which position of the change log everything that is derived has been computed.

An entry of the log has taken effect once nothing waits for it any more: this worker has followed the log to it; its
change of features has been spread; the items that were enqueued for it, or because of what was spread, are completed;
what these completions have changed is in memory; and no vector that any of this has made stale is stale. Work comes in
all the time, so that there may always be something that waits. Hence one position is chosen, and only what waits for
entries up to there is waited for; then the next one is chosen.

The queues are shared by all workers, and each look at them is one snapshot of the database. An item that is enqueued
again keeps the moment at which it was enqueued first (`Backlog.oldest_item`) until somebody has completed it. So what
waits in one snapshot has been done, by whomever, once a later one has nothing that was enqueued as early. Where the
clocks of several workers differ, or one is set back, that is recognised later, never too early.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from service.ports import Backlog


@dataclass
class _Awaited:
    """A position of the change log that has yet to take effect in whole; `in_round`, whether a round of background work
    has begun with it.

    `is_spread`: no change of features up to it waits; what was enqueued then, the last of it at `enqueued_by` (None:
    nothing was), includes all that is to be completed for it. `completed_at`: the position of the log by which that had
    been completed, None before.
    """

    position: int
    in_round: bool = False
    is_spread: bool = False
    enqueued_by: datetime | None = None
    completed_at: int | None = None


@dataclass
class Progress:
    """How far what is derived follows the change log in one worker: up to the position `through`."""

    through: int = 0
    _awaited: _Awaited | None = None

    def begin(self, position: int, *, in_round: bool = False) -> None:
        """Wait for all up to a position to which the log has been followed, unless another one is waited for: by a
        round that has begun, or, where none begins now, by anybody."""
        awaited = self._awaited
        is_waited_for = awaited is not None and (awaited.in_round or not in_round)
        if (
            awaited is None or not is_waited_for or awaited.position > position
        ):  # such as of a database before a restore
            self._awaited = _Awaited(position, in_round)
        self.through = min(self.through, position)

    def see(self, backlog: Backlog) -> None:
        """Take note of a snapshot of the queues. They may come in another order than they were taken in."""
        awaited = self._awaited
        if awaited is None or backlog.position < awaited.position:
            return
        if backlog.first_change is not None and backlog.first_change <= awaited.position:
            return
        if not awaited.is_spread:
            awaited.is_spread, awaited.enqueued_by = True, backlog.newest_item
        is_left = (
            backlog.oldest_item is not None
            and awaited.enqueued_by is not None
            and backlog.oldest_item <= awaited.enqueued_by
        )
        if awaited.completed_at is None and not is_left:
            awaited.completed_at = backlog.position

    @property
    def needed(self) -> int | None:
        """The position up to which the log must be in memory, and nothing be stale afterwards, for what is waited for
        to have taken effect; None while that is not known."""
        return None if self._awaited is None else self._awaited.completed_at

    def finish(self, needed: int) -> None:
        """All that was `needed` is done."""
        if self._awaited is not None and self._awaited.completed_at == needed:
            self.through, self._awaited = self._awaited.position, None
