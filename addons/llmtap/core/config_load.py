"""From a file, the environment and the command line to a `Config`. Precedence: command line, environment, file, defaults.

Whatever is wrong ends as one `ConfigError` whose text has a line for each problem, `FILE:LINE: KEY: what is wrong; mend`;
nothing else is raised, and no secret is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from llmtap.core import config_env, config_problems, config_support, config_yaml
from llmtap.core.config import Config
from llmtap.core.config_problems import Origin, Problem

DEFAULT_FILE = "llmtap.yaml"
COMMAND_LINE = Origin("command line")
_LARGEST = 4_000_000  # bytes of a configuration file; a larger one is some other file


def resolve_path(explicit: Path | None, env: Mapping[str, str], cwd: Path) -> Path | None:
    """The configuration file: `explicit`, else `$LLMTAP_CONFIG`, else `llmtap.yaml` in `cwd` if it is there, else None.

    A file that was named is returned whether or not it exists: `load` says what is wrong with it.
    """
    if explicit is not None:
        return explicit
    named = env.get("LLMTAP_CONFIG")
    if named:
        return Path(named)
    path = cwd / DEFAULT_FILE
    return path if path.exists() or path.is_symlink() else None


def load(path: Path | None, env: Mapping[str, str], overrides: Mapping[str, Any]) -> Config:
    """The configuration in force. Raises ConfigError.

    `path`: the YAML file, or None for none. `overrides`: from the command line, dotted keys or nested mappings
    (`{"server.port": 9000}`, `{"backends": [{...}]}`); a value None means that the option was not given.
    """
    merged = _Merged()
    if path is not None:
        merged.read_file(path)
    settings, problems = config_env.settings(env, Config)
    merged.problems += problems
    for setting in settings:
        merged.put(setting.path, setting.value, Origin(setting.variable))
    for key, value in overrides.items():
        if value is not None:
            merged.put(tuple(key.split(".")), _plain(value), COMMAND_LINE)
    merged.interpolate(env)
    config = merged.validate()
    if config is None or merged.problems:
        raise config_problems.config_error(sorted(merged.problems, key=lambda p: (p.origin.source, p.origin.line or 0)))
    refused = [Problem(merged.origin(r.path), config_problems.dotted(r.path), r.message) for r in config_support.not_yet(config)]
    if refused:
        raise config_problems.config_error(refused)
    return config


def _plain(value: Any) -> Any:
    """Overrides as YAML would have given them: dicts, lists, scalars."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value) if isinstance(value, Path) else value


@dataclass(slots=True)
class _Merged:
    """The document as merged so far, and for each path where its value was given."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[config_problems.Path, Origin] = field(default_factory=lambda: {(): Origin("configuration")})
    problems: list[Problem] = field(default_factory=list)

    def origin(self, path: config_problems.Path) -> Origin:
        """Where the value at `path`, or what holds it, was given."""
        while path not in self.origins:
            path = path[:-1]
        return self.origins[path]

    def read_file(self, path: Path) -> None:
        source = str(path)
        self.origins[()] = Origin(source)
        try:
            with path.expanduser().open("rb") as file:
                data = file.read(_LARGEST + 1)
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            self.problems.append(Problem(Origin(source, line), "", "is not UTF-8 text; save it as UTF-8"))
            return
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: ~ of a user without a home
            self.problems.append(Problem(Origin(source), "", _unreadable(error)))
            return
        if len(data) > _LARGEST:
            self.problems.append(Problem(Origin(source), "", "is too large for a configuration; name another file"))
            return
        document = config_yaml.read(text)
        for at, key, message in document.errors:
            self.problems.append(Problem(Origin(source, at), config_problems.dotted(key), message))
        if document.errors or document.tree is None:  # an empty file means the defaults
            return
        if not isinstance(document.tree, dict):
            self.problems.append(
                Problem(Origin(source, 1), "", "must be a mapping with sections, like `server:`; see docs/configuration.md")
            )
            return
        for known, number in document.lines.items():
            self.origins[known] = Origin(source, number, literal=True)
        # a section whose keys are all commented out is null to YAML, and means its defaults
        self.tree = {key: value for key, value in document.tree.items() if value is not None or key not in Config.model_fields}

    def put(self, path: config_problems.Path, value: Any, origin: Origin) -> None:
        """Set `value`; a mapping is merged into the one that is there, anything else replaces."""
        node: Any = self.tree
        for n, part in enumerate(path):
            last = n == len(path) - 1
            if isinstance(node, list) and isinstance(part, int):
                if part > len(node):
                    message = f"there is no {config_problems.dotted(path[: n + 1])}; the next one is number {len(node)}"
                    self.problems.append(Problem(origin, config_problems.dotted(path), message))
                    return
                if part == len(node):
                    node.append(None)
            elif not isinstance(node, dict):
                return  # validation will complain of what is there
            old = node.get(part) if isinstance(node, dict) else node[int(part)]
            if last:
                break
            if old is None:
                node[part] = old = [] if isinstance(path[n + 1], int) else {}
            node = old
        if isinstance(value, dict) and isinstance(old, dict):
            for key, inner in value.items():
                self.put((*path, key), inner, origin)
            return
        node[path[-1]] = value
        for known in [p for p in self.origins if p[: len(path)] == path]:
            del self.origins[known]
        self.origins[path] = origin

    def interpolate(self, env: Mapping[str, str]) -> None:
        for path, wrong in config_env.interpolate(self.tree, env):
            origin = self.origin(path)
            self.origins[path] = Origin(origin.source, origin.line)  # no longer literal: what it became is not shown
            if wrong is not None:
                self.problems.append(Problem(origin, config_problems.dotted(path), wrong))

    def validate(self) -> Config | None:
        """The configuration, or None with more `problems`."""
        silent = {problem.key for problem in self.problems}  # said already: what follows from it would only confuse
        try:
            return Config.model_validate(self.tree)
        except ValidationError as error:
            seen: set[config_problems.Path] = set()
            for details in error.errors(include_url=False, include_input=False):
                path, value, whole = config_problems.walk(self.tree, details["loc"])
                if not whole and details["type"] == "missing":
                    path, value = (*path, details["loc"][-1]), None
                for part in details.get("ctx", {}).get("at", ()):
                    path = (*path, part)
                key = config_problems.dotted(path)
                if path in seen or key in silent:
                    continue
                seen.add(path)
                origin = self.origin(path)
                message = config_problems.message_for(details, Config, path, value, origin)
                self.problems.append(Problem(origin, key, message))
        return None


def _unreadable(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file; create it, or name another with --config"
    if isinstance(error, IsADirectoryError):
        return "is a folder; name the file in it"
    if isinstance(error, PermissionError):
        return "may not be read; change its permissions"
    reason = error.strerror if isinstance(error, OSError) else "not a valid path"
    return f"cannot be read: {reason or type(error).__name__}"
