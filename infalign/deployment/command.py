"""What the modules of this room that are run by themselves have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from infalign.errors import CheckFailed, InputError
from infalign.settings.params import Params, load_params


def parser_of(word: str, about: str | None) -> argparse.ArgumentParser:
    """A parser of `python -m infalign.deployment.WORD --objective O …`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m infalign.deployment.{word}", description=about
    )
    parser.add_argument("--objective", required=True)
    return parser


def run(
    word: str,
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    work: Callable[[Params, argparse.Namespace], None],
) -> int:
    """Work in the project of the current folder; what is wrong is one sentence, exit code 2."""
    chosen = parser.parse_args(arguments)
    from infalign.processes.one_stage import apply_threads

    try:
        apply_threads("params.yaml")
        work(load_params("params.yaml"), chosen)
    except (InputError, CheckFailed) as error:
        print(f"{word}: {error}", file=sys.stderr)
        return 2
    return 0
