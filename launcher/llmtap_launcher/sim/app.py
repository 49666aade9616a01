"""The routes of the simulated server, vLLM's and the simulation's own under `/sim/`."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from . import audio, control, generate, messages, ollama, pooling, responses, template
from .bodies import VERSION
from .errors import VllmError, prompt_too_long
from .faults import FaultError, Rule, parse_fault
from .front import Front, error_response, received
from .metrics import CONTENT_TYPE
from .requests import DetokenizeRequest, TokenizeRequest, parse
from .simulation import Runner, Simulation

Handler = Callable[[Simulation, Request], Awaitable[Response]]


def create_app(sim: Simulation) -> ASGIApp:
    """The ASGI application of one simulated server."""
    routes = [
        _route(sim, "GET", "/v1/models", _models),
        _route(sim, "GET", "/health", _health),
        _route(sim, "GET", "/ping", _health),
        _route(sim, "POST", "/ping", _health),
        _route(sim, "GET", "/load", _load),
        _route(sim, "GET", "/version", _version),
        _route(sim, "GET", "/metrics", _metrics),
        _route(sim, "POST", "/metrics", _metrics),
        _route(sim, "POST", "/tokenize", _tokenize),
        _route(sim, "POST", "/detokenize", _detokenize),
        _route(sim, "POST", "/inference/v1/generate", _scale_out),
        *(_route(sim, method, path, handler) for path, (method, handler) in _surfaces(sim.settings.runner).items()),
        _route(sim, "POST", "/sim/fail", _fail),
        _route(sim, "POST", "/sim/reset", _reset),
        _route(sim, "GET", "/sim/requests", _requests),
        _route(sim, "GET", "/sim/state", _state),
    ]
    if sim.settings.sleep_mode:
        routes += [Route(path, handler, methods=[method]) for method, path, handler in control.routes(sim.rest)]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_exception})
    return Front(app, sim)


#: path -> method and handler, of a model that generates
GENERATING: dict[str, tuple[str, Handler]] = {
    "/v1/chat/completions": ("POST", generate.chat),
    "/v1/chat/completions/batch": ("POST", generate.chat_batch),
    "/v1/completions": ("POST", generate.completions),
    "/v1/responses": ("POST", responses.responses),
    "/v1/messages": ("POST", messages.messages),
    "/v1/messages/count_tokens": ("POST", messages.count_tokens),
    "/v1/audio/transcriptions": ("POST", audio.transcriptions),
    "/v1/audio/translations": ("POST", audio.translations),
    "/api/chat": ("POST", ollama.chat),
    "/api/generate": ("POST", ollama.generate_text),
    "/api/embed": ("POST", ollama.embed),
    "/api/embeddings": ("POST", ollama.embeddings),
    "/api/show": ("POST", ollama.show),
    "/api/tags": ("GET", ollama.tags),
    "/api/ps": ("GET", ollama.ps),
    "/api/version": ("GET", ollama.version),
}
#: and of one that pools
POOLING: dict[str, tuple[str, Handler]] = {
    "/v1/embeddings": ("POST", pooling.embeddings),
    "/v2/embed": ("POST", pooling.embed),
    "/pooling": ("POST", pooling.pooling),
    "/classify": ("POST", pooling.classify),
    "/score": ("POST", pooling.score),
    "/v1/score": ("POST", pooling.score),
    "/rerank": ("POST", pooling.rerank),
    "/v1/rerank": ("POST", pooling.rerank),
    "/v2/rerank": ("POST", pooling.rerank),
}


def _surfaces(runner: Runner) -> dict[str, tuple[str, Handler]]:
    return {"all": GENERATING | POOLING, "generate": GENERATING, "pooling": POOLING}[runner]


def _route(sim: Simulation, method: str, path: str, handler: Handler) -> Route:
    async def endpoint(request: Request) -> Response:
        try:
            return await handler(sim, request)
        except VllmError as error:
            return error_response(error)

    route = Route(path, endpoint, methods=[method])
    if route.methods:
        route.methods.discard("HEAD")  # Starlette adds it to GET; FastAPI, which vLLM uses, does not
    return route


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)


async def _models(sim: Simulation, request: Request) -> Response:
    created = int(time.time())
    data = [_model_card(name, created, sim.settings.max_model_len) for name in sim.settings.models]
    return _json({"object": "list", "data": data})


def _model_card(name: str, created: int, max_model_len: int) -> dict[str, Any]:
    permission = {
        "id": f"modelperm-{uuid.uuid4().hex[:16]}",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": name,
        "parent": None,
        "max_model_len": max_model_len,
        "permission": [permission],
    }


async def _health(sim: Simulation, request: Request) -> Response:
    return Response(status_code=503 if sim.engine.dead else 200)


async def _load(sim: Simulation, request: Request) -> Response:
    # the request that asks is not load
    return _json({"server_load": sim.in_flight - 1})


async def _version(sim: Simulation, request: Request) -> Response:
    return _json({"version": VERSION})


async def _metrics(sim: Simulation, request: Request) -> Response:
    return Response(sim.metrics.scrape(), media_type=CONTENT_TYPE)


async def _tokenize(sim: Simulation, request: Request) -> Response:
    body = parse(TokenizeRequest, request.headers.get("content-type", ""), received(request.scope).body)
    generate.check_model(sim, body.model)
    text = body.prompt
    if text is None:
        text = template.render(body.messages or [], body.tools, generation_prompt=body.add_generation_prompt)
    tokens = sim.tokenizer.encode(text)
    if len(tokens) > sim.settings.max_model_len:
        raise prompt_too_long(sim.settings.max_model_len)
    strings = [sim.tokenizer.token_text(token) for token in tokens] if body.return_token_strs else None
    return _json({"count": len(tokens), "max_model_len": sim.settings.max_model_len, "tokens": tokens, "token_strs": strings})


async def _detokenize(sim: Simulation, request: Request) -> Response:
    body = parse(DetokenizeRequest, request.headers.get("content-type", ""), received(request.scope).body)
    generate.check_model(sim, body.model)
    return _json({"prompt": sim.tokenizer.decode(body.tokens)})


async def _scale_out(sim: Simulation, request: Request) -> Response:
    raise VllmError(
        "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them.",
        type="PermissionDeniedError",
        code=403,
    )


async def _fail(sim: Simulation, request: Request) -> Response:
    """`{"kind": KIND or KIND=ARG, "times": N or null, "probability": P, "path": PATH or null}`; in force before earlier ones."""
    try:
        wanted = json.loads(await request.body())
        rule = Rule(
            fault=parse_fault(str(wanted["kind"])),
            times=None if wanted.get("times") is None else int(wanted["times"]),
            probability=float(wanted.get("probability", 1.0)),
            path=wanted.get("path"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        detail = str(error) if isinstance(error, FaultError) else 'expected {"kind": ..., "times": N or null}'
        return _json({"detail": detail}, 400)
    sim.add_rule(rule)
    return _state_response(sim)


async def _reset(sim: Simulation, request: Request) -> Response:
    sim.reset()
    return _state_response(sim)


async def _requests(sim: Simulation, request: Request) -> Response:
    return _json([seen.object() for seen in sim.log.list(request.query_params.get("path"))])


async def _state(sim: Simulation, request: Request) -> Response:
    return _state_response(sim)


def _state_response(sim: Simulation) -> Response:
    rules = [
        {"kind": r.fault.kind, "arg": r.fault.argument, "times": r.times, "probability": r.probability, "path": r.path}
        for r in sim.rules.list()
    ]
    engine = sim.engine
    return _json(
        {
            "running": engine.running,
            "waiting": engine.waiting,
            "aborted": engine.aborted,
            "dead": engine.dead,
            "refusing": sim.refusing,
            "faults": rules,
        }
    )


def _json(data: object, status: int = 200) -> Response:
    return Response(orjson.dumps(data), status, media_type="application/json")
