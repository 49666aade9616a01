"""Loads exported files with the libraries people train with: `python check.py FOLDER` (environment: `make test-training`).

Every file loads with `datasets.load_dataset`; TRL knows conversations as such, applies a chat template to them and takes
preferences apart. Prints a line a file; exit status 1 when one is refused.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from datasets import load_dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl.data_utils import apply_chat_template, is_conversational, unpair_preference_dataset

TEMPLATE = """{%- if tools %}<|tools|>{% for tool in tools %}{{ tool | tojson }}{% endfor %}
{% endif %}{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% elif message.content %}{% for part in message.content %}{{ \
part.text if part.type == 'text' else '<image>' }}{% endfor %}{% endif %}{% for call in message.tool_calls or [] %}<tool_call>{{ \
call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def check(path: Path, cache: Path) -> str:
    """What was found of a file. Raises AssertionError, or what the libraries raise."""
    kind = "json" if path.suffix == ".jsonl" else "parquet"
    rows = load_dataset(kind, data_files=str(path), split="train", cache_dir=str(cache / path.name))
    assert len(rows) > 0
    name = path.name.partition(".")[0]
    if name.startswith("trl-"):
        assert all(is_conversational(row) for row in rows), "TRL sees no conversation"
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")))
        tokenizer.chat_template = TEMPLATE
        for row in rows.select(range(min(50, len(rows)))):
            if isinstance(row.get("tools"), str):
                continue  # text in Parquet: the trainer loads it
            written = apply_chat_template(row, tokenizer)
            assert any(isinstance(value, str) and "<|im_start|>" in value for value in written.values())
    if name == "trl-preference":
        assert len(unpair_preference_dataset(rows)) == 2 * len(rows)
    return f"{path.name}: {len(rows)} rows, {', '.join(rows.column_names[:6])}"


def main(folder: Path) -> None:
    """All files of the folder."""
    for path in sorted([*folder.glob("*.jsonl"), *folder.glob("*.parquet")]):
        try:
            print(check(path, folder / "cache"))
        except Exception as error:
            sys.exit(f"{path.name}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
