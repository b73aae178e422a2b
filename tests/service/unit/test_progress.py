from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from service.pipeline.progress import Progress
from service.ports import Backlog

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def backlog(position: int, items: tuple[float, float] | None = None, change: int | None = None) -> Backlog:
    oldest, newest = (at(items[0]), at(items[1])) if items else (None, None)
    return Backlog(2 if items else 0, 0 if change is None else 1, position, oldest, newest, None, change)


def done(progress: Progress) -> int:
    if progress.needed is not None:
        progress.finish(progress.needed)
    return progress.through


def test_where_nothing_waits_all_has_taken_effect() -> None:
    progress = Progress()
    assert progress.through == 0
    progress.begin(7)
    progress.see(backlog(9))
    assert progress.needed == 9  # what was completed until then may have changed items by entries up to 9
    assert done(progress) == 7


def test_a_change_that_has_yet_to_be_spread_is_waited_for() -> None:
    progress = Progress()
    progress.begin(7)
    progress.see(backlog(7, change=7))
    assert progress.needed is None
    progress.see(backlog(8, (1.0, 1.0), change=8))  # it has been spread, and what it reached was enqueued
    assert progress.needed is None
    progress.see(backlog(9, (2.0, 2.0)))
    assert done(progress) == 7


def test_what_comes_in_later_is_not_waited_for() -> None:
    progress = Progress()
    progress.begin(3)
    progress.see(backlog(3, (1.0, 2.0)))
    progress.begin(5)  # only once the former has taken effect
    progress.see(backlog(6, (2.0, 4.0)))
    assert progress.needed is None
    progress.see(backlog(8, (3.0, 5.0), change=8))
    assert progress.needed == 8
    assert done(progress) == 3
    progress.begin(8)
    progress.see(backlog(8, (3.0, 5.0), change=8))
    assert done(progress) == 3


def test_a_round_takes_the_newest_position_and_keeps_it() -> None:
    progress = Progress()
    progress.begin(3)
    progress.see(backlog(3, (1.0, 1.0)))
    progress.begin(5, in_round=True)
    progress.see(backlog(5, (1.0, 2.0)))
    progress.begin(7, in_round=True)  # the former round has not completed all, maybe another worker does
    progress.see(backlog(7, (3.0, 3.0)))
    assert done(progress) == 5


def test_an_older_snapshot_says_nothing_of_later_entries() -> None:
    progress = Progress()
    progress.begin(7)
    progress.see(backlog(6))
    assert progress.needed is None
    progress.see(backlog(7, (1.0, 1.0)))
    progress.see(backlog(7, change=7))  # from before the change was spread
    assert progress.needed is None


def test_another_database_begins_anew() -> None:
    progress = Progress()
    progress.begin(7)
    progress.see(backlog(7))
    assert done(progress) == 7
    progress.begin(9)
    progress.begin(2)
    assert progress.through == 2
    progress.see(backlog(2))
    assert done(progress) == 2


class Log:
    """Writes that enqueue items or change features, and workers that complete and spread them, with snapshots of the
    queues; `open_` has, of each item in the queue, the writes that it has yet to be completed for."""

    def __init__(self, seed: int) -> None:
        self.random, self.position, self.now = random.Random(seed), 0, 0.0
        self.changes: set[int] = set()
        self.open: dict[int, set[int]] = {}
        self.enqueued: dict[int, float] = {}

    def step(self) -> None:
        draw = self.random
        self.now += draw.random()
        what = draw.choice(("event", "event", "change", "spread", "complete", "complete", "complete"))
        if what in ("event", "change"):
            self.position += 1
        if what == "event":
            self.enqueue(draw.randrange(6), {self.position})
        elif what == "change":
            self.changes.add(self.position)
        elif what == "spread" and self.changes:
            change = draw.choice(sorted(self.changes))
            self.changes.remove(change)
            for item in draw.sample(range(6), 2):
                self.enqueue(item, {change})
        elif what == "complete" and self.open:
            item = draw.choice(sorted(self.open))
            del self.open[item], self.enqueued[item]
            self.position += draw.randrange(2)  # it has changed, or not

    def enqueue(self, item: int, writes: set[int]) -> None:
        self.open.setdefault(item, set()).update(writes)
        self.enqueued.setdefault(item, self.now)

    def snapshot(self) -> Backlog:
        times = (min(self.enqueued.values()), max(self.enqueued.values())) if self.enqueued else None
        return backlog(self.position, times, min(self.changes, default=None))

    def waiting(self) -> set[int]:
        return self.changes.union(*self.open.values())


def test_at_random_nothing_up_to_there_waits_and_it_goes_on() -> None:
    for seed in range(50):
        log, progress = Log(seed), Progress()
        late: list[Backlog] = []
        for _ in range(400):
            log.step()
            if log.random.random() < 0.3:
                progress.begin(log.position, in_round=log.random.random() < 0.5)
            if log.random.random() < 0.5:
                late.append(log.snapshot())
            if late and log.random.random() < 0.5:
                progress.see(late.pop(log.random.randrange(len(late))))
                through = done(progress)
                assert all(write > through for write in log.waiting())
        assert progress.through > 0
