"""`infalign prune`: what nothing needs any more, said, and removed where that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def prune(
    keep_versions: Annotated[
        int, typer.Option(help="The newest versions of each model that stay in any case.")
    ] = 10,
    keep_nights: Annotated[int, typer.Option(help="The newest nights whose results stay.")] = 30,
    remove: Annotated[
        bool, typer.Option("--remove", help="Do it; otherwise it is only said.")
    ] = False,
) -> None:
    """Free the space of versions and results that no champion, alias or kept night needs."""
    from flows.registry.retention import prune as clear

    clear(Path.cwd(), keep_versions, keep_nights, remove, typer.echo)
