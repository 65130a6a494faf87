"""Anthropic-HH texts: dialogues with markers, whose last turn is the response.

A text is `\\n\\nHuman: …\\n\\nAssistant: …`; the response is what follows the last marker.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path

from infalign.data.dialogue import ASSISTANT, HUMAN
from infalign.data.pairs import Pair


def split_text(text: str) -> tuple[str, str] | None:
    """Prompt, with its last marker, and stripped response; None where the text has not both."""
    cut = text.rfind(ASSISTANT)
    if cut < 0 or not text.startswith(HUMAN):
        return None
    cut += len(ASSISTANT)
    prompt, response = text[:cut], text[cut:]
    # Where the human speaks last there is no response to judge.
    return None if HUMAN in response else (prompt, response.strip())


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write pairs as a gzipped HH file whose bytes depend on the pairs alone."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as stream:
        for pair in pairs:
            row = {
                "chosen": f"{pair.prompt.marked} {pair.chosen}",
                "rejected": f"{pair.prompt.marked} {pair.rejected}",
            }
            stream.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
