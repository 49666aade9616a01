"""The shape of the source: who may import whom, a mirrored test for each module, nothing that shadows the standard library."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ADDONS, LAUNCHER = ROOT / "addons", ROOT / "launcher"
MODULES = sorted([*ADDONS.glob("llmtap/**/*.py"), *LAUNCHER.glob("llmtap_launcher/**/*.py")])

#: addon modules that are meeting points rather than addons: any addon may import them
MEETING_POINTS = {"llmtap.exchange", "llmtap.settings"}
#: layer -> prefixes of ours it may import (its own package is always allowed)
ALLOWED: dict[str, tuple[str, ...]] = {
    "core": (),
    "wire": ("llmtap.core",),
    "policy": ("llmtap.core",),
    "spool": ("llmtap.core",),
    "lane": ("llmtap.core",),
    "addon": ("llmtap.core", "llmtap.wire", "llmtap.policy", "llmtap.spool", *MEETING_POINTS),
    "chain": ("llmtap",),
    # the middleware is a client that records, no addon
    "launcher": ("llmtap.core", "llmtap.wire", "llmtap.policy", "llmtap.spool", "llmtap.middleware", "llmtap_launcher"),
}
#: the layers that may import mitmproxy
MITMPROXY = {"lane", "addon", "chain"}


def module_name(path: Path) -> str:
    root = ADDONS if path.is_relative_to(ADDONS) else LAUNCHER
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def layer(name: str) -> str:
    if name.startswith("llmtap_launcher"):
        return "launcher"
    parts = name.split(".")
    if len(parts) == 1:
        return "core"
    if parts[1] in ("core", "wire", "policy", "spool", "lane"):
        return parts[1]
    return "chain" if parts[1] in ("chain", "exchanges", "lifecycle", "assembly", "policies", "errands", "master") else "addon"


def imports(path: Path) -> set[str]:
    """Modules imported at run time (imports for type checkers apart)."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
                module = ".".join([*package[: len(package) - node.level + 1], *([module] if module else [])])
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    name = module_name(path)
    of = layer(name)
    own_package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    if of in ("addon", "chain", "core") and own_package == "llmtap":
        own_package = name  # addons never import each other
    known = {module_name(p) for p in MODULES}
    for imported in imports(path):
        if imported not in known or imported == "llmtap":
            continue
        allowed = (*ALLOWED[of], own_package)
        assert any(under(imported, prefix) for prefix in allowed), f"{name} ({of}) must not import {imported}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_only_the_inside_imports_mitmproxy_and_nobody_vllm(path: Path) -> None:
    name = module_name(path)
    for imported in imports(path):
        assert not under(imported, "vllm"), f"{name} imports vllm: it is a process"
        if under(imported, "mitmproxy"):
            assert layer(name) in MITMPROXY, f"{name} must not import mitmproxy"


def test_every_module_has_its_mirrored_test() -> None:
    missing = []
    for path in MODULES:
        if path.name in ("__init__.py", "__main__.py"):
            continue
        root = ADDONS if path.is_relative_to(ADDONS) else LAUNCHER
        mirrored = ROOT / "tests" / "unit" / path.relative_to(root).with_name(f"test_{path.name}")
        if not mirrored.exists():
            missing.append(str(mirrored.relative_to(ROOT)))
    assert missing == []


def test_nothing_beside_the_script_shadows_the_standard_library() -> None:
    """mitmproxy leaves the script's folder at the front of `sys.path` for good."""
    names = {p.stem for p in ADDONS.iterdir() if not p.name.startswith(("_", "."))}
    assert names == {"gateway", "llmtap"}
    assert names & set(sys.stdlib_module_names) == set()


def test_the_script_is_wiring_only() -> None:
    tree = ast.parse((ADDONS / "gateway.py").read_text(encoding="utf-8"))
    statements = [n for n in tree.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    assert len(statements) == 2


def test_top_level_is_what_the_design_names() -> None:
    expected = {"addons", "launcher", "tests", "fixtures", "docs"}
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")} - {"llmtap-data", "dist", "build"}
    assert folders == expected
