import io
import json
import shlex

from llmtap_launcher.report import gateway_state, print_table, process_states, size, try_line, up_line, url_rows


def table(rows: list[list[str]], header: list[str] | None = None) -> list[str]:
    out = io.StringIO()
    print_table(out, rows, header=header)
    return out.getvalue().splitlines()


def test_columns_line_up_and_nothing_is_cut() -> None:
    long = "http://127.0.0.1:8000/" + "x" * 300
    assert table([["a", long, "ready"], ["longer", "b", "[bold]not markup[/bold]"]]) == [
        f"a       {long}  ready",
        "longer  b" + " " * (len(long) + 1) + "[bold]not markup[/bold]",
    ]
    assert table([["1", "2"]], ["first", "second"]) == ["first  second", "1      2"]
    assert table([]) == []


def test_rows_of_urls() -> None:
    state = {
        "urls": {"openai": "U/v1", "datasette": "D", "metrics": None, "web": "W"},
        "backends": [
            {"name": "a", "url": "A", "model": "m"},
            {"name": "ext", "url": "E", "model": None},
        ],
        "processes": [
            {"name": "gateway", "state": "ready", "error": None},
            {"name": "datasette", "state": "failed", "error": "port 1 is in use"},
            {"name": "a", "state": "starting", "error": None},
        ],
    }
    assert process_states(state)["datasette"] == "failed (port 1 is in use)"
    assert url_rows(state, {"ext": "up, served"}) == [
        ["OpenAI base URL", "U/v1", "ready"],
        ["Datasette", "D", "failed (port 1 is in use)"],
        ["Web UI", "W", ""],
        ["Backend a", "A", "starting, m"],
        ["Backend ext", "E", "up, served"],
    ]


def test_several_workers_in_one_cell() -> None:
    states = {"gateway-1": "ready", "gateway-2": "ready", "writer": "ready"}
    assert gateway_state(states) == "ready, 2 workers"
    assert gateway_state(states | {"gateway-2": "starting (was ended by SIGKILL)"}) == (
        "1 of 2 workers ready, gateway-2 starting (was ended by SIGKILL)"
    )
    assert gateway_state({"gateway": "failed (x)"}) == "failed (x)"
    assert gateway_state({"writer": "ready"}) == ""


def test_the_line_to_try_survives_a_shell() -> None:
    words = shlex.split(try_line("http://x/v1", 'it\'s a "model"'))
    assert words[:3] == ["curl", "-s", "http://x/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == 'it\'s a "model"'


def test_sizes() -> None:
    assert [size(n) for n in (None, 0, 999, 1000, 12_345_678, 5e9, 7e12)] == [
        "-", "0 B", "999 B", "1.0 kB", "12.3 MB", "5.0 GB", "7.0 TB",
    ]  # fmt: skip


def test_the_command_that_starts_an_engine_is_one_line_for_a_shell() -> None:
    words = shlex.split(up_line("http://127.0.0.1:8000"))
    assert words[2] == "http://127.0.0.1:8000/api/v1/inference/up" and json.loads(words[-1]) == {"model": "MODEL"}
