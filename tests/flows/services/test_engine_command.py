"""`infalign engine`: a server that outlives the command, and ends when it is told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from smoke import merged

from flows.services import engine
from infalign.errors import InputError
from infalign.lm.models import save_model
from tests.engines.own_server import stand_in


def test_infalign_engine_start_and_stop(
    policy: Any,
    tokenizer: Any,
    smoke_tree: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(policy, tokenizer, tmp_path / "results/sft/policy")
    tree = merged(smoke_tree, {"generation": {"python": str(stand_in(tmp_path))}})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    told: list[str] = []
    with pytest.raises(InputError, match=r"--model align/helpful/none: .* does not exist"):
        engine.start(tmp_path, "align/helpful/none", 0, False, told.append)
    with pytest.raises(InputError, match=r"align\.lora_rank is null"):
        engine.start(tmp_path, "sft", 0, True, told.append)
    engine.start(tmp_path, "sft", 0, False, told.append)
    [note] = engine.running(tmp_path).values()
    assert told[-1].startswith(f"Up: http://127.0.0.1:{note.port} serves sft.")
    with pytest.raises(InputError, match="it is up already"):
        engine.start(tmp_path, "sft", 0, False, told.append)
    engine.stop(tmp_path, told.append)
    assert told[-1] == "sft ended."
    assert not note.alive
    engine.stop(tmp_path, told.append)
    assert told[-1] == "Nothing was up."
