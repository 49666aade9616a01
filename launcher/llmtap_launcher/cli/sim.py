"""`llmtap sim`."""

from __future__ import annotations

import sys
from typing import Literal

import click

from llmtap_launcher.sim import faults


def parse_rules(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[faults.Rule, ...]:
    """`KIND[=ARG][:PROBABILITY|:COUNT]` of each --fail, or click's error with what would be right."""
    try:
        return tuple(faults.parse_rule(value) for value in values)
    except faults.FaultError as error:
        raise click.BadParameter(str(error), ctx, param) from None


_FAULTS = "\n".join(f"  {kind:<20}{text}" for kind, text in faults.DESCRIPTIONS.items())


@click.command(
    help=f"""Run a simulated vLLM server: the same bytes on the wire, made-up text, no model and no GPU.

\b
Example:
  llmtap sim --port 8081 --model sim-small --tokens-per-second 50
  llmtap sim --port 8081 --fail http_500:0.1 --fail die_mid_stream=20:3

\b
Faults (--fail KIND[=ARG][:PROBABILITY|:COUNT]):
{_FAULTS}

\b
One request asks for a fault or a pace of its own by a header or anywhere in its body:
  x-sim-fail: stall=3
  [[sim:fail=die_mid_stream=7]] [[sim:tps=50]] [[sim:ttft=200]] [[sim:tokens=300]]
"""
)
@click.option("--port", type=click.IntRange(0, 65535), default=8081, show_default=True, help="Port; 0 takes any free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="Served model name; may be repeated.  [default: sim-small]"
)
@click.option(
    "--tokens-per-second",
    type=click.FloatRange(min=0),
    default=100.0,
    show_default=True,
    help="Pace of each stream; 0 is as fast as possible.",
)
@click.option("--ttft-ms", type=click.FloatRange(min=0), default=20.0, show_default=True, help="Time to the first token.")
@click.option("--fail", "rules", callback=parse_rules, multiple=True, metavar="SPEC", help="A fault, see above; may be repeated.")
@click.option("--api-key", metavar="KEY", help="Guard /v1 as vLLM's --api-key does.")
@click.option("--max-model-len", type=click.IntRange(min=16), default=32768, show_default=True, help="Context length in tokens.")
@click.option(
    "--max-num-seqs", type=click.IntRange(min=1), default=1024, show_default=True, help="Choices generated at once; others wait."
)
@click.option("--reasoning", is_flag=True, help="Think before answering, as vLLM with --reasoning-parser and such a model.")
@click.option("--enable-request-id-headers", is_flag=True, help="Answer with x-request-id, as vLLM's flag of this name.")
@click.option("--enable-sleep-mode", is_flag=True, help="Serve /sleep, /wake_up, /pause and /resume, as vLLM's flag does.")
@click.option(
    "--shutdown-timeout",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="What streams in flight get to finish after SIGTERM.",
)
@click.option(
    "--runner",
    type=click.Choice(["all", "generate", "pooling"]),
    default="all",
    show_default=True,
    help="Routes there are; a vLLM has those of `generate` (chat ...) or of `pooling` (embeddings ...).",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, other texts.")
def sim(
    port: int,
    host: str,
    models: tuple[str, ...],
    tokens_per_second: float,
    ttft_ms: float,
    rules: tuple[faults.Rule, ...],
    api_key: str | None,
    max_model_len: int,
    max_num_seqs: int,
    reasoning: bool,
    enable_request_id_headers: bool,
    enable_sleep_mode: bool,
    shutdown_timeout: float,
    runner: Literal["all", "generate", "pooling"],
    seed: int,
) -> None:
    """The command; its help is above, because it is made from the table of faults."""
    # imported here: `llmtap sim --help` needs no server
    from llmtap_launcher.sim.server import run
    from llmtap_launcher.sim.simulation import Settings

    settings = Settings(
        host=host,
        port=port,
        models=models or ("sim-small",),
        tokens_per_second=tokens_per_second,
        ttft_ms=ttft_ms,
        rules=rules,
        api_key=api_key,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        reasoning=reasoning,
        request_id_headers=enable_request_id_headers,
        sleep_mode=enable_sleep_mode,
        shutdown_timeout_s=shutdown_timeout,
        seed=seed,
        runner=runner,
    )
    sys.exit(run(settings))
