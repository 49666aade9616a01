"""Fuzz the lane: `python tests/fuzz/run.py --executions 1000000 --seconds 600 --seed 1 --differential 5000`.

In-process executions hold the parsers against the reference; differential ones go through real sockets, next to nginx. The same
seed gives the same inputs. Exit code 1 when anything was wrong; the inputs are then in fixtures/fuzz/found-*.bin.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "addons")]

from fuzz.corpus import Corpus  # noqa: E402
from fuzz.differential import EXCEPTIONS, SENTINEL, Bench, available, run_one  # noqa: E402
from fuzz.generate import alter, case, cut, reply  # noqa: E402
from fuzz.oracle import Violation, check_reply, check_requests, check_tight  # noqa: E402

_SLOTS = 24
_SHOWN = 10


class Report:
    """Counts, and the first few things that were wrong."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def failed(self, what: str, data: bytes, error: object) -> None:
        name = self.corpus.failed(what, data)
        self.wrong.append(f"{name}: {what}: {error!s:.400}")
        if len(self.wrong) <= _SHOWN:
            print("WRONG", self.wrong[-1], flush=True)

    def print(self, title: str, seconds: float, total: int) -> None:
        print(
            f"{title}: {total} executions in {seconds:.1f} s, {total / max(seconds, 0.001):.0f} a second, {len(self.wrong)} wrong"
        )
        for what, count in sorted(self.counts.items(), key=lambda item: -item[1]):
            print(f"  {count:>9} {what}")


def in_process(executions: int, deadline: float, seed: int, corpus: Corpus) -> Report:
    """Requests three times of four, responses the fourth; each whole and in pieces."""
    rng = Random(seed)
    report = Report(corpus)
    started = time.monotonic()
    old, old_replies = list(corpus.requests().values()), list(corpus.replies().values())
    done = 0
    while done < executions and (done % 1000 or time.monotonic() < deadline):
        done += 1
        if done % 4 == 0:
            answer = reply(rng)
            if old_replies and rng.random() < 0.1:
                answer.data = alter(rng, rng.choice(old_replies))
            try:
                end = check_reply(answer, cut(rng, answer.data))
            except Exception as error:
                report.failed("reply", answer.data, error if isinstance(error, Violation) else repr(error))
                continue
            report.counts[f"response, {end.end}"] += 1
            corpus.offer(f"reply {end.end} {end.why}", answer.data)
            continue
        tried = case(rng)
        if old and rng.random() < 0.1:
            tried.kind, tried.data, tried.expected = "altered", alter(rng, rng.choice(old)), None
        pieces = cut(rng, tried.data)
        try:
            end = check_requests(tried, pieces)
            check_tight(tried.data, pieces)
        except Exception as error:
            report.failed(tried.kind, tried.data, error if isinstance(error, Violation) else repr(error))
            continue
        report.counts[f"requests, {end.end}"] += 1
        corpus.offer(f"request {tried.kind} {end.end}", tried.data)
        if end.why:
            corpus.offer(f"request {end.why}", tried.data)
    report.print("in process", time.monotonic() - started, done)
    return report


async def differential(executions: int, deadline: float, seed: int, corpus: Corpus, mitmproxy: int) -> Report:
    """Several at a time. What differs is tried again, alone, before it counts: a busy machine makes proxies time out."""
    rng = Random(seed)
    report = Report(corpus)
    left = iter(range(executions))
    suspects: list[tuple[str, bytes, list[bytes]]] = []
    done = 0

    async def work(bench: Bench, slot: int, numbers: Iterator[int]) -> None:
        nonlocal done
        for number in numbers:
            if time.monotonic() > deadline:
                return
            tried = case(rng)
            data = tried.data + SENTINEL
            pieces = cut(rng, data)
            if len(pieces) > 12:
                pieces = [data]
            wrong, relation, seen = await run_one(bench, slot, data, pieces)
            done += 1
            if wrong is not None:
                suspects.append((tried.kind, data, pieces))
            else:
                report.counts[f"nginx: {relation}"] += 1
            if number < mitmproxy:
                stock = await bench.mitmproxy(slot, pieces)
                same = stock.messages == seen.messages
                fewer = stock.messages == seen.messages[: len(stock.messages)]
                more = "garbled" if stock.garbled else "same" if same else "fewer" if fewer else "more or others"
                report.counts[f"stock mitmproxy: {more}"] += 1

    with tempfile.TemporaryDirectory() as folder:
        async with Bench(_SLOTS, Path(folder)).running(mitmproxy=mitmproxy > 0) as bench:
            started = time.monotonic()
            await asyncio.gather(*(work(bench, slot, left) for slot in range(_SLOTS)))
            seconds = time.monotonic() - started
            for kind, data, pieces in suspects:
                wrong, relation, _ = await run_one(bench, 0, data, pieces)
                if wrong is not None:
                    report.failed(kind, data, wrong)
                else:
                    report.counts[f"nginx: {relation}"] += 1
    report.print("differential", seconds, done)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=100_000, help="in process")
    parser.add_argument("--seconds", type=float, default=600, help="end after so long, each of the two parts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--differential", type=int, default=0, metavar="M", help="executions through sockets, next to nginx")
    parser.add_argument("--mitmproxy", type=int, default=0, metavar="K", help="so many of them through stock mitmproxy too")
    parser.add_argument("--exceptions", action="store_true", help="print the differences to nginx that are meant, and end")
    args = parser.parse_args()
    if args.exceptions:
        for what, why, _ in EXCEPTIONS:
            print(f"| {what} | {why} |")
        return 0
    corpus = Corpus()
    reports = [in_process(args.executions, time.monotonic() + args.seconds, args.seed, corpus)]
    if args.differential and (reason := available()) is not None:
        print(f"differential: left out, {reason}")
    elif args.differential:
        reports.append(
            asyncio.run(differential(args.differential, time.monotonic() + args.seconds, args.seed, corpus, args.mitmproxy))
        )
    print(f"corpus: {corpus.save()} new files")
    return 1 if any(report.wrong for report in reports) else 0


if __name__ == "__main__":
    raise SystemExit(main())
