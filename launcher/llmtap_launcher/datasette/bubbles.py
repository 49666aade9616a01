"""Messages as chat bubbles.

Everything captured is hostile: it reaches the page only through markupsafe's escaping, and nothing that it names is loaded.
"""

from __future__ import annotations

import json
import re
from typing import Any

from markupsafe import Markup

from llmtap_launcher.datasette.conversation import Message
from llmtap_launcher.datasette.formats import number, size
from llmtap_launcher.datasette.security import PICTURES
from llmtap_launcher.store.attachments import reference

_KNOWN = {"system", "developer", "user", "assistant", "tool", "function"}
_FOLD_CHARS = 1200  # system prompts and tool results are long and rarely what one looks for
_PREVIEW_CHARS = 100
_FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_DATA_URL = re.compile(r"data:([^;,\s]{0,100})[^,]{0,200},", re.IGNORECASE)
#: where servers and clients put the text of thinking; all of them are shown, none is part of the reply proper
_REASONING = ("reasoning", "reasoning_content", "thinking")


def pretty(value: Any) -> str:
    """JSON for reading. A string is parsed first; one that is no JSON (a cut-off call) comes back as it is."""
    if isinstance(value, str):
        text = value
        try:
            value = json.loads(text)
        except ValueError:
            return text
    return json.dumps(value, indent=2, ensure_ascii=False)


def prose(text: str) -> Markup:
    """Text with its line breaks; fenced code gets a box of its own. Nothing else of Markdown is interpreted."""
    out, at = [], 0
    for found in _FENCE.finditer(text):
        out.append(_paragraph(text[at : found.start()]))
        label = found[1].strip()
        caption = Markup('<span class="lang">{}</span>').format(label) if label else Markup("")
        out.append(Markup('<div class="code">{}<pre>{}</pre></div>').format(caption, found[2].rstrip("\n")))
        at = found.end()
    out.append(_paragraph(text[at:]))
    return Markup("").join(out)


def _paragraph(text: str) -> Markup:
    text = text.strip("\n")
    return Markup('<div class="text" dir="auto">{}</div>').format(text) if text.strip() else Markup("")


def _folded(summary: str, body: Markup, kind: str) -> Markup:
    return Markup('<details class="{}"><summary>{}</summary>{}</details>').format(kind, summary, body)


def _image(url: str) -> Markup:
    """A picture is named, never loaded: a data URL could be anything, a remote one would tell its server who reads this."""
    if (stored := reference(url)) is not None:
        return _attachment(stored[0], stored[1])
    data = _DATA_URL.match(url)
    label = f"{data[1] or 'data'}, {size(len(url))}, inline" if data else url
    return Markup('<div class="attachment"><span class="tag">image</span> {}</div>').format(label[:500])


def _attachment(hashed: bytes, prefix: str) -> Markup:
    """A picture that is stored is shown; whether it is one is for its own page to say (`/-/attachment/…`)."""
    mime = prefix.removeprefix("data:").partition(";")[0].lower()
    if mime and mime not in PICTURES:
        return Markup('<div class="attachment"><span class="tag">{}</span> <a href="{}">download</a></div>').format(
            mime, f"../attachment/{hashed.hex()}"
        )
    return Markup('<img class="picture" src="{}" alt="{}" loading="lazy">').format(
        f"../attachment/{hashed.hex()}", f"attached {mime or 'picture'}"
    )


def _part(part: Any) -> Markup:
    """One element of a content list, in OpenAI's or Anthropic's shape."""
    if isinstance(part, str):
        return prose(part)
    if not isinstance(part, dict):
        return Markup("<pre>{}</pre>").format(pretty(part))
    kind = part.get("type")
    if isinstance(part.get("text"), str) and kind in ("text", "input_text", "output_text", None):
        return prose(part["text"])
    if kind in ("thinking", "reasoning") and isinstance(part.get("thinking") or part.get("text"), str):
        return _reasoning(part.get("thinking") or part["text"])
    if kind in ("image_url", "input_image"):
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        return _image(url if isinstance(url, str) else "")
    if kind == "tool_use":
        return _call(str(part.get("name", "")), part.get("id"), part.get("input"))
    if kind == "tool_result":
        return content(part.get("content"))
    if kind == "image":  # Anthropic's and Ollama's
        source = part.get("source")
        data = source.get("data") if isinstance(source, dict) else part.get("data")
        if isinstance(data, str) and reference(data) is not None:
            return _image(data)
    shown = json.dumps({k: _short(v) for k, v in part.items()}, indent=2, ensure_ascii=False)
    return Markup('<div class="attachment"><span class="tag">{}</span><pre>{}</pre></div>').format(kind or "part", shown)


def _short(value: Any) -> Any:
    """Long strings (base64 audio, files) inside unknown parts, cut."""
    if isinstance(value, str) and len(value) > 500:
        return f"{value[:100]}… ({number(len(value))} characters)"
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    return [_short(v) for v in value] if isinstance(value, list) else value


def content(value: Any) -> Markup:
    """A message's `content`: text, a list of parts, or anything else as JSON."""
    if value is None:
        return Markup("")
    if isinstance(value, str):
        return prose(value)
    if isinstance(value, list):
        return Markup("").join(_part(part) for part in value)
    return Markup("<pre>{}</pre>").format(pretty(value))


def _reasoning(text: str) -> Markup:
    return _folded(f"Reasoning ({number(len(text))} characters)", prose(text), "reasoning")


def _call(name: str, ident: Any, arguments: Any) -> Markup:
    label = Markup(' <span class="ident">{}</span>').format(ident) if ident else Markup("")
    head = Markup('<div class="call-name"><span class="tag">tool call</span> <b>{}</b>{}</div>').format(name, label)
    return Markup('<div class="call">{}<pre>{}</pre></div>').format(head, pretty(arguments if arguments is not None else {}))


def tool_calls(calls: Any) -> Markup:
    """The `tool_calls` of an assistant message; a list element that is no call is shown as JSON."""
    out = []
    for call in calls if isinstance(calls, list) else []:
        inner = call.get("function") if isinstance(call, dict) else None
        if isinstance(call, dict) and not isinstance(inner, dict):
            inner = call  # already flat: {id, name, arguments}
        if isinstance(inner, dict) and ("name" in inner or "arguments" in inner):
            out.append(_call(str(inner.get("name", "")), call.get("id"), inner.get("arguments")))
        else:
            out.append(Markup("<pre>{}</pre>").format(pretty(call)))
    return Markup("").join(out)


def bubble(message: Message, raw_url: str = "") -> Markup:
    """One message: its role, text, reasoning (folded), tool calls. `raw_url` is linked when given: the stored row, uncut."""
    role = message.role or "unknown"
    extra = message.extra or {}
    body = _body(message, extra)
    cut = message.chars - len(message.text or "")
    if cut > 0:
        rest = f"… {number(cut)} more characters"
        link = Markup('<a href="{}">{}, show all</a>').format(raw_url, rest) if raw_url else Markup("{}").format(rest)
        body += Markup('<p class="cut">{}</p>').format(link)
    calls = tool_calls(extra.get("tool_calls"))
    thoughts = Markup("").join(_reasoning(extra[key]) for key in _REASONING if isinstance(extra.get(key), str) and extra[key])
    refusal = extra.get("refusal")
    if isinstance(refusal, str) and refusal:
        body += Markup('<div class="refusal"><span class="tag">refusal</span> {}</div>').format(prose(refusal))
    if not (body or calls or thoughts):
        body = Markup('<p class="empty">(empty)</p>')
    names = [str(extra[key]) for key in ("name", "tool_call_id") if extra.get(key)]
    if message.choice is not None:
        names.append(f"choice {message.choice}")
    who = Markup("").join(Markup(' <span class="ident">{}</span>').format(name) for name in names)
    raw = Markup('<a class="raw" href="{}" title="the stored row">raw</a>').format(raw_url) if raw_url else Markup("")
    kind = f"role-{role}" if role in _KNOWN else "role-other"
    return Markup('<article class="msg {}{}"><header><span class="role">{}</span>{}{}</header>{}{}{}</article>').format(
        kind, " reply" if message.reply else "", role, who, raw, thoughts, body, calls
    )


def _body(message: Message, extra: dict[str, Any]) -> Markup:
    parts = extra.get("content")
    if isinstance(parts, list | dict):
        return content(parts)
    text = message.text or ""
    if message.role in ("tool", "function"):
        shown = pretty(text) if text[:1] in "{[" and message.chars == len(text) else text
        body = Markup("<pre>{}</pre>").format(shown) if shown else Markup("")
    else:
        body = prose(text)
    if message.role in ("system", "developer", "tool", "function") and len(text) > _FOLD_CHARS:
        preview = " ".join(text[:_PREVIEW_CHARS].split())
        return _folded(f"{preview}… ({number(message.chars)} characters)", body, "long")
    return body
