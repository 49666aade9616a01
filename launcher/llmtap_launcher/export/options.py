"""What an export is asked for: plain values, checked where they are read from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llmtap_launcher.selection import Selection

Message = dict[str, Any]
Reasoning = Literal["drop", "keep", "inline"]
Images = Literal["data", "files", "drop", "skip"]
ToolArgs = Literal["string", "object"]

#: what training data is made of unless somebody says otherwise: replies that ended by themselves
FINISHED = ("stop", "tool_calls", "end_turn", "tool_use", "stop_sequence", "completed")
#: a request of these is a conversation
CHATS = ("chat", "messages", "responses", "ollama_chat")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which exchanges. Empty sequences of outcomes, finish reasons and endpoints: whatever they are."""

    selection: Selection = field(default_factory=Selection)
    outcomes: Sequence[str] = ("ok", "cached")
    finish_reasons: Sequence[str] = FINISHED
    endpoints: Sequence[str] = CHATS
    ratings: Sequence[str] = ()  # conditions as `ratings.parse` reads them, all of which must hold
    min_tokens: int | None = None  # of prompt and reply together
    max_tokens: int | None = None
    sql: str | None = None  # a query whose column `id` or `uid` names exchanges


@dataclass(frozen=True, slots=True)
class Shape:
    """How a row looks. `mark`: a `train` flag on every reply, for trainers that read one."""

    reasoning: Reasoning = "drop"
    images: Images = "data"
    tool_args: ToolArgs = "string"
    tools: bool = True
    mark: bool = False
    corrected: bool = False  # the correction of a reply in its place


@dataclass(frozen=True, slots=True)
class Drawn:
    """Which of the rows. Shares (0 to 1) go by the conversation's root, so that what begins alike stays together."""

    every_turn: bool = False
    duplicates: bool = False
    validation: float = 0.0
    sample: float = 1.0
    salt: str = ""
    limit: int | None = None
