"""A tokenizer whose ids have holes, as those of some families have."""

from __future__ import annotations

import json
from pathlib import Path

END = "<far end>"


def with_far_end(folder: Path, number: int) -> None:
    """Give a saved tokenizer an EOS with an id far behind all others."""
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text())
    tree["model"]["vocab"][END] = number
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tree["added_tokens"].append({"id": number, "content": END, "special": True, **flags})
    path.write_text(json.dumps(tree))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": END}))
