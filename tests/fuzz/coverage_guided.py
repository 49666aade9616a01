"""The same oracles under atheris (libFuzzer): `pip install atheris; python tests/fuzz/coverage_guided.py -runs=1000000`.

Guided by the coverage of the lane's Python and the reference's; llhttp itself, compiled, is not seen. Starts from the corpus.
Optional: where atheris is not installed it says so and ends.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "addons")]


def main() -> int:
    try:
        import atheris
    except ImportError:
        print("skipped: atheris is not installed (pip install atheris)")
        return 0
    with atheris.instrument_imports(include=["fuzz.oracle", "fuzz.reference", "llmtap.lane"]):
        from fuzz import oracle
    from fuzz.corpus import FOLDER
    from fuzz.generate import Case, ReplyCase

    def one(data: bytes) -> None:
        """The first two bytes: which oracle, and where to cut."""
        if len(data) < 3:
            return
        how, at, data = data[0], data[1], data[2:]
        at %= len(data)
        pieces = [data[:at], data[at:]]
        if how & 1:
            oracle.check_reply(ReplyCase(data, bool(how & 2), bool(how & 4)), pieces)
        else:
            oracle.check_requests(Case("altered", data), pieces)
            oracle.check_tight(data, pieces)

    seeds = Path(tempfile.mkdtemp(prefix="lane-fuzz-"))  # libFuzzer leaves by itself: nobody could remove it
    for path in FOLDER.glob("*.bin"):
        (seeds / path.name).write_bytes((b"\5\7" if "reply-" in path.name else b"\0\7") + path.read_bytes())
    atheris.Setup([*sys.argv, "-max_len=600", str(seeds)], one)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
