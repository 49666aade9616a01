"""YAML text to plain data plus the line of every key: what error messages need and ordinary loaders throw away.

Built on ruamel.yaml's node graph (its composer), where each node has its mark. YAML 1.2: `yes` is text, a date is text.
Accepted are mappings with text keys, lists, text, numbers, true/false and null; anchors and merge keys work.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from llmtap.core.config_problems import Path

_TAG = "tag:yaml.org,2002:"
#: nodes one document may come to with its aliases followed: past it, it is a bomb rather than a configuration
MAX_NODES = 50_000


@dataclass(slots=True)
class Document:
    """A read document. `lines`: the line (from 1) of each key and list item; `errors`: (line, path, what is wrong; mend)."""

    tree: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    errors: list[tuple[int | None, Path, str]] = field(default_factory=list)


class _TooLarge(Exception):
    pass


def read(text: str) -> Document:
    """The document in `text`; an empty one is None. Never raises: what is wrong is in `errors` (then do not use `tree`)."""
    document = Document()
    try:
        yaml = YAML(typ="safe", pure=True)
        yaml.composer.warn_double_anchors = False  # YAML 1.2 allows them
        node = yaml.compose(text)
        if node is not None:
            document.tree = _Converter(document).convert(node, ())
    except _TooLarge:
        document.errors.append((None, (), f"has more than {MAX_NODES} values once its aliases are followed"))
    except RecursionError:
        document.errors.append((None, (), "is nested too deeply"))
    except ReaderError as error:
        position = error.position if isinstance(error.position, int) else 0
        document.errors.append((text.count("\n", 0, position) + 1, (), "contains a character YAML does not allow; remove it"))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        document.errors.append((None if mark is None else mark.line + 1, (), f"not valid YAML: {_reason(error, text)}"))
    except (YAMLError, ValueError, TypeError, AttributeError, IndexError, KeyError, AssertionError):
        # the scanner has corners where it fails with something else than its own error
        document.errors.append((None, (), "not valid YAML"))
    return document


def _reason(error: MarkedYAMLError, text: str) -> str:
    reason = " ".join(str(error.problem or error.context or "it cannot be parsed").split())
    if "\\t" in reason:
        return "a tab where YAML wants spaces; replace it by spaces"
    # quoted pieces of the document may be secrets; single characters and <token names> may stay
    reason = re.sub(r"'[^']*'|\"[^\"]*\"", lambda m: m[0] if len(m[0]) <= 3 or m[0][1] == "<" else "...", reason)
    mark = error.problem_mark
    line = "" if mark is None else "".join(text.split("\n")[mark.line : mark.line + 1])
    return reason + ("; between { } put ${env.NAME} in quotes" if "${" in line else "")


class _Converter:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._open: set[int] = set()  # nodes being converted: meeting one again means an alias to itself
        self._count = 0

    def convert(self, node: Node, path: Path) -> Any:
        self._count += 1
        if self._count > MAX_NODES:
            raise _TooLarge
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            self._wrong(node, path, "refers to itself; remove the alias")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, SequenceNode):
                return self._sequence(node, path)
            assert isinstance(node, MappingNode)
            return self._mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _wrong(self, node: Node, path: Path, message: str) -> None:
        self._document.errors.append((node.start_mark.line + 1, path, message))

    def _sequence(self, node: SequenceNode, path: Path) -> list[Any] | None:
        if not self._plain_tag(node, "seq"):
            self._wrong(node, path, "has a tag (!...) that is not used here; remove it")
            return None
        items = []
        for index, item in enumerate(node.value):
            self._document.lines.setdefault((*path, index), item.start_mark.line + 1)
            items.append(self.convert(item, (*path, index)))
        return items

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any] | None:
        if not self._plain_tag(node, "map"):
            self._wrong(node, path, "has a tag (!...) that is not used here; remove it")
            return None
        out: dict[str, Any] = {}
        lines = self._document.lines
        merged: list[Node] = []
        for key, value in node.value:
            if str(key.tag) == f"{_TAG}merge":
                merged += value.value if isinstance(value, SequenceNode) else [value]
                continue
            if not isinstance(key, ScalarNode) or str(key.tag) != f"{_TAG}str":
                self._wrong(key, path, "has a key that is not text; put it in quotes")
                continue
            here = (*path, key.value)
            line = key.start_mark.line + 1
            if key.value in out:
                self._wrong(key, here, f"is given twice (first in line {lines[here]}); remove one")
                continue
            lines[here] = line
            out[key.value] = self.convert(value, here)
        for source in merged:
            if not isinstance(source, MappingNode):
                self._wrong(source, path, "merges (<<) something that is not a mapping; refer to a mapping")
                continue
            # what stands in the mapping itself, or was merged first, stays
            taken = {k: v for k, v in lines.items() if k[: len(path)] == path}
            extra = self.convert(source, path)
            lines.update(taken)
            out = {**(extra or {}), **out}
        return out

    @staticmethod
    def _plain_tag(node: Node, kind: str) -> bool:
        return str(node.tag) == f"{_TAG}{kind}"

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        kind, text = str(node.tag).removeprefix(_TAG), str(node.value)
        try:
            match kind:
                case "str" | "timestamp" | "value" | "merge":
                    return text
                case "null":
                    return None
                case "bool":
                    return text.lower() in ("true", "yes", "on", "y")
                case "int":
                    return _integer(text)
                case "float":
                    return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            self._wrong(node, path, "is not a number; put it in quotes if it is text")
            return None
        self._wrong(node, path, "has a tag (!...) that is not used here; remove it")
        return None


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-").lower()
    base = {"0x": 16, "0o": 8, "0b": 2}.get(digits[:2], 10)
    return sign * int(digits if base == 10 else digits[2:], base)
