"""A worker that captures as fast as it can and says on its standard output what it has captured: for tests that kill it.

    python producer.py CAPTURE_DIR BOOT

After each record: `b UID` or `e UID`, a line. Every seventh exchange never ends.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

from llmtap.core.record import Begin, Choice, End, Summary, Usage
from llmtap.spool.sink import SpoolSink

NEVER_ENDS = 7


def main(directory: Path, boot: str) -> None:
    sink = SpoolSink(directory / "spool", "w0", boot, segment_bytes=30_000)
    for n in itertools.count():
        uid = f"{boot}.{n}"
        body = b'{"model":"m","messages":[{"role":"system","content":"%s"},{"role":"user","content":"ask %s"}]}' % (
            b"be brief " * 20,
            uid.encode(),
        )
        begin = Begin(uid, 1_795_224_923_456_000 + n, "w0", "POST", "/v1/chat/completions", "chat", body=body, body_is_json=True)
        assert sink.write_begin(begin)
        os.write(1, b"b %s\n" % uid.encode())
        if n % NEVER_ENDS:
            reply = Summary(
                choices=[Choice(0, content=f"answer {uid}", finish_reason="stop")], usage=Usage(1, 2, source="upstream")
            )
            assert sink.write_end(End(uid, 1_795_224_923_456_000 + n, "ok", status=200, summary=reply, deltas=[10] * 20))
            os.write(1, b"e %s\n" % uid.encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
