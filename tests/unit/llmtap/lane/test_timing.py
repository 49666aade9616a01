import asyncio

from llmtap.lane.timing import Limit, Watch


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time the test moves; timers are run by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.timers: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        return getattr(self, "now", 0.0)

    def call_at(self, when: float, callback: object, *args: object, **_: object) -> asyncio.TimerHandle:  # type: ignore[override]
        handle = asyncio.TimerHandle(when, callback, args, self)  # type: ignore[arg-type]
        self.timers.append(handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            due = sorted((t for t in self.timers if not t.cancelled() and t.when() <= end), key=lambda t: t.when())
            if not due:
                break
            self.timers.remove(due[0])
            self.now = due[0].when()
            due[0]._run()
        self.now = end

    @property
    def pending(self) -> int:
        return sum(not t.cancelled() for t in self.timers)


def make(total: float = 0.0, ticked_from_s: float = float("inf")) -> tuple[Clock, Watch, list[Limit]]:
    loop = Clock()
    expired: list[Limit] = []
    watch = Watch(loop, total, expired.append, ticked_from_s)
    loop.close()
    return loop, watch, expired


def test_a_phase_without_progress_expires() -> None:
    loop, watch, expired = make()
    watch.phase("first_byte", 10)
    loop.advance(9.9)
    assert expired == []
    loop.advance(0.2)
    assert expired == ["first_byte"]


def test_progress_postpones_without_touching_the_timer() -> None:
    loop, watch, expired = make()
    watch.phase("idle", 10)
    for _ in range(100):
        loop.advance(1)
        watch.touched = loop.now
    assert expired == [] and loop.pending == 1
    loop.advance(10)
    assert expired == ["idle"]


def test_the_total_time_counts_whatever_happens() -> None:
    loop, watch, expired = make(total=30)
    watch.phase("first_byte", 10)
    for _ in range(40):
        loop.advance(1)
        if expired:
            break
        watch.phase("idle", 10)
    assert expired == ["total"] and loop.now == 130


def test_a_shorter_phase_after_a_longer_one() -> None:
    loop, watch, expired = make()
    watch.phase("first_byte", 600)
    watch.phase("idle", 1)
    loop.advance(1.1)
    assert expired == ["idle"] and loop.pending == 0


def test_no_limits_no_timer_and_stop_leaves_none() -> None:
    loop, watch, expired = make()
    watch.phase("idle", 0)
    assert loop.pending == 0
    watch.phase("idle", 5)
    watch.stop()
    watch.stop()
    loop.advance(10)
    assert expired == [] and loop.pending == 0


def test_long_times_have_no_timer_and_end_at_a_tick() -> None:
    loop, watch, expired = make(total=100, ticked_from_s=20)
    watch.phase("first_byte", 30)
    assert loop.pending == 0
    watch.tick(loop.now + 29.9)
    assert expired == []
    watch.tick(loop.now + 30)
    watch.tick(loop.now + 31)
    assert expired == ["first_byte"]  # told once
    watch.phase("idle", 0)
    watch.tick(loop.now + 99.9)
    watch.tick(loop.now + 100)
    watch.tick(loop.now + 101)
    assert expired == ["first_byte", "total"]


def test_short_times_have_a_timer_beside_long_ones() -> None:
    loop, watch, expired = make(total=100, ticked_from_s=20)
    watch.phase("first_byte", 5)
    assert loop.pending == 1
    watch.tick(loop.now + 6)  # not the tick's to end
    assert expired == []
    loop.advance(4)
    watch.touched = loop.now
    loop.advance(4)
    assert expired == []
    watch.phase("idle", 30)  # its time is looked at when the timer is due, and left to the ticks
    loop.advance(5)
    assert expired == [] and loop.pending == 0
    watch.tick(loop.now + 30)
    assert expired == ["idle"]
