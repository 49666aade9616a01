"""The engine on a clock of the test's own: nothing here waits for real time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from llmtap_launcher.sim.engine import Engine, Job
from llmtap_launcher.sim.metrics import Metrics
from llmtap_launcher.sim.script import Step


class Handle:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class ManualLoop:
    """The part of an event loop the engine uses, with time set by the test."""

    def __init__(self) -> None:
        self.now = 100.0
        self.soon: list[tuple[Handle, Callable[[], None]]] = []
        self.timers: list[tuple[float, int, Handle, Callable[[], None]]] = []
        self.order = itertools.count()

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], None]) -> Handle:
        handle = Handle()
        self.soon.append((handle, callback))
        return handle

    def call_at(self, when: float, callback: Callable[[], None]) -> Handle:
        handle = Handle()
        heapq.heappush(self.timers, (when, next(self.order), handle, callback))
        return handle

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            if self.soon:
                handle, callback = self.soon.pop(0)
            elif self.timers and self.timers[0][0] <= end:
                when, _, handle, callback = heapq.heappop(self.timers)
                self.now = max(self.now, when)
            else:
                break
            if not handle.cancelled:
                callback()
        self.now = end


def script(length: int, finish: str = "stop") -> list[Step]:
    return [*[Step(n, "content", "x") for n in range(length - 1)], Step(2, "control", finish=finish)]


class Bench:
    """An engine, its clock, and the tokens it handed out: (time since start, job name, choice, token)."""

    def __init__(self, **options: Any) -> None:
        self.loop = ManualLoop()
        self.metrics = Metrics("tiny", 2048)
        self.engine = Engine(self.metrics, self.loop, **options)  # type: ignore[arg-type]
        self.out: list[tuple[float, str, int, int]] = []

    def job(self, name: str, scripts: Sequence[Sequence[Step]], tps: float = 100, ttft: float = 0.05, **more: Any) -> Job:
        def on_step(choice: int, step: Step) -> None:
            self.out.append((round(self.loop.now - 100, 6), name, choice, step.token))

        job = Job(
            scripts=scripts,
            prompt_tokens=[9] * len(scripts),
            max_tokens=100,
            ttft_s=ttft,
            interval_s=1 / tps if tps else 0.0,
            on_step=more.pop("on_step", on_step),
            done=asyncio.get_running_loop().create_future(),
            **more,
        )
        self.engine.submit(job)
        return job

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, {"model_name": "tiny", "engine": "0", **labels})


async def test_the_first_token_comes_after_ttft_and_the_others_at_their_pace() -> None:
    bench = Bench()
    job = bench.job("a", [script(4)])
    bench.loop.advance(0.049)
    assert bench.out == []
    bench.loop.advance(10)
    assert [t for t, *_ in bench.out] == pytest.approx([0.05, 0.06, 0.07, 0.08])
    assert job.done.result() == "finished"
    assert bench.engine.running == 0


async def test_choices_of_one_request_alternate() -> None:
    bench = Bench()
    bench.job("a", [script(3), script(3)])
    bench.loop.advance(1)
    assert [choice for _, _, choice, _ in bench.out] == [0, 1, 0, 1, 0, 1]


async def test_every_stream_keeps_its_own_pace() -> None:
    bench = Bench()
    bench.job("slow", [script(11)], tps=10, ttft=0)
    bench.job("fast", [script(101)], tps=100, ttft=0)
    bench.loop.advance(0.505)
    assert sum(name == "slow" for _, name, *_ in bench.out) == 6
    assert sum(name == "fast" for _, name, *_ in bench.out) == 51


async def test_without_a_pace_everything_comes_at_once_but_in_turns() -> None:
    bench = Bench()
    jobs = [bench.job(name, [script(1000)], tps=0, ttft=0) for name in "ab"]
    bench.loop.advance(0)
    assert [j.done.result() for j in jobs] == ["finished", "finished"]
    assert [name for _, name, *_ in bench.out[:4]] == ["a", "b", "a", "b"]


async def test_a_burst_lets_the_loop_breathe() -> None:
    bench = Bench()
    bench.job("a", [script(1000)], tps=0, ttft=0)
    when, _, _, tick = bench.loop.timers[0]
    bench.loop.timers.clear()
    tick()
    assert when == bench.loop.now
    assert len(bench.out) == 256
    assert len(bench.loop.soon) == 1


async def test_an_abort_stops_generation_at_once() -> None:
    bench = Bench()
    job = bench.job("a", [script(100), script(100)])
    bench.loop.advance(0.1)
    so_far = len(bench.out)
    bench.engine.abort(job)
    assert (bench.engine.running, bench.value("vllm:num_requests_running")) == (0, 0)
    bench.loop.advance(10)
    assert len(bench.out) == so_far
    assert job.done.result() == "aborted"
    assert bench.engine.aborted == 1
    bench.engine.abort(job)
    assert bench.engine.aborted == 1


async def test_an_abort_stops_generation_even_if_nobody_waits_for_its_outcome_any_more() -> None:
    bench = Bench()
    job = bench.job("a", [script(100)])
    job.done.cancel()
    bench.engine.abort(job)
    assert bench.engine.running == 0
    other = bench.job("b", [script(3)])
    other.done.cancel()
    bench.loop.advance(1)
    assert bench.engine.running == 0


async def test_an_aborted_request_is_no_success_but_its_tokens_count() -> None:
    bench = Bench()
    job = bench.job("a", [script(100)])
    bench.loop.advance(0.1)
    bench.engine.abort(job)
    assert bench.value("vllm:generation_tokens_total") == len(bench.out)
    assert bench.value("vllm:time_to_first_token_seconds_count") == 1
    assert bench.value("vllm:e2e_request_latency_seconds_count") == 0
    assert all(bench.value("vllm:request_success_total", finished_reason=r) == 0 for r in ("stop", "length", "abort"))


async def test_more_than_max_num_seqs_wait() -> None:
    bench = Bench(max_num_seqs=2)
    jobs = [bench.job(name, [script(3)]) for name in "abc"]
    assert (bench.engine.running, bench.engine.waiting) == (2, 1)
    assert bench.value("vllm:num_requests_waiting") == 1
    bench.loop.advance(0.075)
    assert (bench.engine.running, bench.engine.waiting) == (1, 0)
    bench.loop.advance(1)
    assert [j.done.result() for j in jobs] == ["finished"] * 3
    assert bench.value("vllm:request_queue_time_seconds_sum") == pytest.approx(0.07)


async def test_one_that_waits_can_be_aborted() -> None:
    bench = Bench(max_num_seqs=1)
    bench.job("a", [script(3)])
    waiting = bench.job("b", [script(3)])
    bench.engine.abort(waiting)
    assert bench.engine.waiting == 0
    bench.loop.advance(1)
    assert {name for _, name, *_ in bench.out} == {"a"}


async def test_a_stall_holds_one_request_and_no_other() -> None:
    bench = Bench()
    job = bench.job("a", [script(10)], ttft=0)
    bench.job("b", [script(10)], ttft=0)
    bench.loop.advance(0.021)
    bench.engine.stall(job, 1.0)
    bench.loop.advance(0.5)
    assert [sum(n == name for _, n, *_ in bench.out) for name in "ab"] == [3, 10]
    bench.loop.advance(1)
    assert job.done.result() == "finished"
    assert [t for t, n, *_ in bench.out if n == "a"][3] == pytest.approx(1.021)


async def test_a_stall_without_end_lasts_until_the_client_leaves() -> None:
    bench = Bench()
    job = bench.job("a", [script(10)], ttft=0)
    bench.engine.stall(job, float("inf"))
    bench.loop.advance(1e6)
    assert (bench.engine.running, bench.out) == (1, [])
    bench.engine.abort(job)
    assert bench.engine.running == 0


async def test_a_client_that_does_not_read_holds_its_own_stream() -> None:
    bench = Bench()
    blocked = True
    job = bench.job("a", [script(5)], ttft=0, blocked=lambda: blocked)
    bench.loop.advance(1)
    assert bench.out == []
    blocked = False
    bench.loop.advance(1)
    assert job.done.result() == "finished"


async def test_death_ends_all_and_refuses_the_next_until_revived() -> None:
    bench = Bench(max_num_seqs=1)
    jobs = [bench.job(name, [script(100)]) for name in "ab"]
    bench.loop.advance(0.1)
    bench.engine.die()
    jobs.append(bench.job("c", [script(3)]))
    assert [j.done.result() for j in jobs] == ["dead"] * 3
    assert (bench.engine.running, bench.engine.waiting) == (0, 0)
    bench.engine.revive()
    last = bench.job("d", [script(3)])
    bench.loop.advance(1)
    assert last.done.result() == "finished"


async def test_a_token_may_kill_its_own_request() -> None:
    bench = Bench()

    def on_step(choice: int, step: Step) -> None:
        bench.engine.abort(job)

    job = bench.job("a", [script(1), script(1)], on_step=on_step)
    bench.loop.advance(1)
    assert job.done.result() == "aborted"


async def test_an_overloaded_machine_does_not_burst_forever_after() -> None:
    bench = Bench()
    bench.job("a", [script(1000)], ttft=0)
    bench.loop.advance(0.1)
    bench.loop.now += 60
    bench.loop.advance(0)
    assert len(bench.out) < 60


async def test_metrics_of_a_finished_request() -> None:
    bench = Bench()
    bench.job("a", [script(4), script(6, "length")])
    bench.loop.advance(1)
    assert bench.value("vllm:request_success_total", finished_reason="stop") == 1
    assert bench.value("vllm:request_success_total", finished_reason="length") == 1
    assert bench.value("vllm:generation_tokens_total") == 10
    assert bench.value("vllm:prompt_tokens_total") == 18
    assert bench.value("vllm:inter_token_latency_seconds_sum") == pytest.approx(0.08)
    assert bench.value("vllm:request_params_n_sum") == 2
    assert bench.value("vllm:request_max_num_generation_tokens_sum") == 6
    assert bench.value("vllm:iteration_tokens_total_sum") == 10
