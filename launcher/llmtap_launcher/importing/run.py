"""One import: files in, records into the spool, then into the database; bad lines told and put aside, never in the way."""

from __future__ import annotations

import gzip
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import batched
from pathlib import Path
from typing import Any, BinaryIO, Literal

import orjson
from ulid import ULID

from llmtap.core.errors import LlmtapError, SpoolError
from llmtap.spool.writer import SegmentWriter
from llmtap_launcher.importing import flows, har
from llmtap_launcher.importing.entries import WORKER, Entry, Malformed, records, uid_of
from llmtap_launcher.importing.logs import Requests, entry_of, is_batch_request
from llmtap_launcher.importing.web import NotInference
from llmtap_launcher.store.database import StoreError, connect_ro
from llmtap_launcher.store.quarantine import BadLine, Quarantine
from llmtap_launcher.store.rows import iso

Kind = Literal["lines", "requests", "har", "flow"]

_SEGMENT = 100_000_000
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that was not taken in: which file, which line (or entry, from 1), why, and the line itself."""

    file: str
    number: int
    reason: str
    line: bytes = b""


@dataclass(slots=True)
class Imported:
    """What came of it. `known`: exchanges that were in the database before; `passed_over`: requests to no inference API."""

    stored: int = 0
    known: int = 0
    passed_over: int = 0
    problems: int = 0
    oldest_us: int | None = None
    requests: int = 0
    shown: list[Problem] = field(default_factory=list)


_SHOWN = 20


def files_of(paths: Iterable[Path]) -> list[Path]:
    """The files named, of folders those inside whose names say they are logs. Raises LlmtapError."""
    out: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(
                p for p in path.iterdir() if p.name.removesuffix(".gz").endswith((".jsonl", ".har", ".flow", ".flows", ".mitm"))
            )
            if not found:
                raise LlmtapError(f"{path}: no .jsonl, .har, .flow or .mitm file in it")
            out += found
        elif path.exists():
            out.append(path)
        else:
            raise LlmtapError(f"{path}: no such file")
    return out


def kind_of(path: Path) -> Kind:
    """What a file is, by how it begins. Raises LlmtapError."""
    with _open(path) as file:
        head = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if head[:1].isdigit() and head[: head.find(b":")].isdigit():
        return "flow"
    if not head.startswith(b"{"):
        raise LlmtapError(f"{path}: neither JSON lines nor a HAR nor a flow file")
    with _open(path) as file:
        for line in file:
            if not line.strip():
                continue
            try:
                first = orjson.loads(line)
            except orjson.JSONDecodeError:
                # one object over many lines
                return "har" if b'"log"' in head else "lines"
            if type(first) is dict and type(first.get("log")) is dict and "entries" in first["log"]:
                return "har"
            return "requests" if is_batch_request(first) and "response" not in first else "lines"
    return "lines"


def run(
    paths: Iterable[Path],
    directory: Path,
    database: Path,
    *,
    key_name: str | None = None,
    tags: tuple[str, ...] = (),
    on_segment: Callable[[], None] = lambda: None,
    at_us: int = 0,
) -> Imported:
    """Writes the exchanges of the files into the spool of `directory`. `key_name`, `tags`: for those that have none.
    `on_segment` is called when a segment is full. Raises LlmtapError when nothing can be read or written."""
    files = [(path, kind_of(path)) for path in files_of(paths)]
    out = Imported()
    requests: Requests = {}
    for path, kind in files:
        if kind == "requests":
            requests.update(_requests(path))
    out.requests = len(requests)
    if requests and not any(kind != "requests" for _, kind in files):
        raise LlmtapError("these are requests of a batch: name the file with their results too")
    quarantine = Quarantine(directory)
    spool = SegmentWriter(directory / "spool", WORKER, str(ULID()), _SEGMENT)
    try:
        for path, kind in files:
            if kind == "requests":
                continue
            found = _good(_entries(path, kind, requests), out, quarantine, at_us)
            for entries in batched(found, _BATCH):
                for entry in _new(entries, database, out):
                    entry.key_name = entry.key_name or key_name
                    entry.tags = entry.tags or list(tags)
                    try:
                        both = records(entry)
                    except Malformed as error:
                        _report(out, quarantine, Problem(str(path), 0, str(error), entry.body), at_us)
                        continue
                    before = spool.path
                    for record in both:
                        spool.append(record)
                    if spool.path != before:
                        on_segment()
                    out.stored += 1
                    out.oldest_us = min(out.oldest_us or entry.at_us, entry.at_us)
    except SpoolError as error:
        raise LlmtapError(str(error)) from error
    finally:
        spool.close()
    return out


def _entries(path: Path, kind: Kind, requests: Requests) -> Iterator[Entry | NotInference | Problem]:
    if kind == "lines":
        yield from _lines(path, requests)
        return
    with _open(path) as file:
        try:
            listed = flows.entries(file) if kind == "flow" else har.entries(orjson.loads(file.read()))
            for number, found in enumerate(listed, 1):
                yield Problem(str(path), number, str(found)) if isinstance(found, Malformed) else found
        except Malformed as error:
            yield Problem(str(path), 1, str(error))
        except orjson.JSONDecodeError as error:
            yield Problem(str(path), error.lineno, "not JSON")
        except (OSError, EOFError) as error:
            yield Problem(str(path), 0, f"cannot be read on: {error}")


def _lines(path: Path, requests: Requests) -> Iterator[Entry | NotInference | Problem]:
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    value = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
                except orjson.JSONDecodeError:
                    yield Problem(str(path), number, "not JSON", line)
                    continue
                if is_batch_request(value) and "response" not in value:
                    continue
                try:
                    yield entry_of(value, requests)
                except Malformed as error:
                    yield Problem(str(path), number, str(error), line)
                except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
                    yield Problem(str(path), number, "values that are not what they should be", line)
    except (OSError, EOFError) as error:
        yield Problem(str(path), 0, f"cannot be read on: {error}")


def _requests(path: Path) -> Requests:
    out: Requests = {}
    with _open(path) as file:
        for line in file:
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if is_batch_request(value):
                out[value["custom_id"]] = value
    return out


def _good(found: Iterator[Entry | NotInference | Problem], out: Imported, quarantine: Quarantine, at_us: int) -> Iterator[Entry]:
    for one in found:
        if isinstance(one, Problem):
            _report(out, quarantine, one, at_us)
        elif isinstance(one, NotInference):
            out.passed_over += 1
        else:
            yield one


def _report(out: Imported, quarantine: Quarantine, problem: Problem, at_us: int) -> None:
    out.problems += 1
    if len(out.shown) < _SHOWN:
        out.shown.append(problem)
    quarantine.add([BadLine(problem.file, problem.number, problem.reason, problem.line)], iso(at_us))


def _new(entries: tuple[Entry, ...], database: Path, out: Imported) -> list[Entry]:
    """Those that are not in the database yet."""
    by_uid = {uid_of(entry): entry for entry in entries}
    out.known += len(entries) - len(by_uid)
    known: set[str] = set()
    try:
        with closing(connect_ro(database)) as conn:
            marks = ", ".join("?" * len(by_uid))
            known = {row[0] for row in conn.execute(f"SELECT uid FROM exchanges WHERE uid IN ({marks})", list(by_uid))}
    except (StoreError, sqlite3.Error):
        pass  # there is none yet
    out.known += len(known)
    return [entry for uid, entry in by_uid.items() if uid not in known]


def _open(path: Path) -> BinaryIO:
    try:
        file: Any = open(path, "rb")  # noqa: SIM115  it is the caller's to close
        if file.read(2) == b"\x1f\x8b":
            file.close()
            return gzip.open(path, "rb")  # type: ignore[return-value]
        file.seek(0)
    except OSError as error:
        raise LlmtapError(f"{path}: cannot be read: {error.strerror}") from error
    opened: BinaryIO = file
    return opened
