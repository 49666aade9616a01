"""A client for vLLM (or anything with OpenAI's API) that records what it sends and gets, without a proxy.

    from llmtap.middleware import VLLMMiddleware

    async with VLLMMiddleware("http://localhost:8081/v1", log_dir="./logs/vllm") as client:
        reply = await client.chat_completion([{"role": "user", "content": "Hello"}], metadata={"user": "u1"})

It writes the spool records that the gateway writes, into `<log_dir>/spool`: `llmtap ingest --dir`, `llmtap analyze --log-dir` and
the exports take that folder. `SyncVLLMMiddleware` is the same without async. Needs httpx, not mitmproxy.
"""

from llmtap.middleware.client import AsyncStream, VLLMMiddleware
from llmtap.middleware.errors import VLLMConnectionError, VLLMError, VLLMStatusError, VLLMStreamError, VLLMTimeout
from llmtap.middleware.logs import QueryRecord, iter_logs, load_logs
from llmtap.middleware.sync import Stream, SyncVLLMMiddleware

__all__ = [
    "AsyncStream",
    "QueryRecord",
    "Stream",
    "SyncVLLMMiddleware",
    "VLLMConnectionError",
    "VLLMError",
    "VLLMMiddleware",
    "VLLMStatusError",
    "VLLMStreamError",
    "VLLMTimeout",
    "iter_logs",
    "load_logs",
]
