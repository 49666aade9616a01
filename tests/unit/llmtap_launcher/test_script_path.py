import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from llmtap.core.errors import LlmtapError
from llmtap_launcher.script_path import script_path

ROOT = Path(__file__).resolve().parents[3]


def test_a_checkouts_script() -> None:
    assert script_path() == ROOT / "addons" / "gateway.py"


def test_looking_imports_no_addon() -> None:
    code = "import sys; from llmtap_launcher.script_path import script_path; script_path(); "
    code += "print([m for m in sys.modules if m.startswith(('mitmproxy', 'llmtap.chain'))])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("installed", [True, False])
def test_an_installed_wheels_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    package = tmp_path / "llmtap"
    (package / "script").mkdir(parents=True)
    if installed:
        (package / "script" / "gateway.py").touch()
    spec = importlib.machinery.ModuleSpec("llmtap", None, is_package=True)
    spec.submodule_search_locations = [str(package)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    if installed:
        assert script_path() == package / "script" / "gateway.py"
    else:
        with pytest.raises(LlmtapError, match=r"gateway\.py is missing"):
            script_path()
