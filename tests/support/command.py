"""`llmtap` as a user types it, in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from llmtap_launcher.cli import cli


def llmtap(*words: object) -> Result:
    """Runs `llmtap WORDS…`; a configuration is that of the current folder, or the one that the words name."""
    return CliRunner().invoke(cli, [str(word) for word in words], env={"LLMTAP_CONFIG": None})
