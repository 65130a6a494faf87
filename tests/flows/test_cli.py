"""The command's own options, and what it says to a misspelled name."""

from __future__ import annotations

import pytest

import infalign
from flows.cli import main


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert not end.value.code
    return capsys.readouterr().out


def test_it_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "--version") == f"infalign {infalign.__version__}\n"


@pytest.mark.parametrize("arguments", [("-h",), ("frontier", "-h"), ("data", "add", "-h")])
def test_a_short_h_is_help(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    long = [word.replace("-h", "--help") for word in arguments]
    assert said(capsys, *arguments) == said(capsys, *long)
