"""Servers that params.yaml names: addresses and keys, and who draws responses."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from infalign.settings.methods import Positive, Rate, Section


def _address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("give the whole address, as in http://127.0.0.1:8000/rewards")
    if parts.username or parts.password:
        raise ValueError("no secret belongs in this file: name its variable, api_key_variable")
    return text


def _variable(text: str) -> str:
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError("give the name of a variable, not the key itself")
    return text


def _distinct(urls: list[str]) -> list[str]:
    bare = [url.rstrip("/").removesuffix("/v1") for url in urls]
    if len(set(bare)) != len(bare):
        raise ValueError(f"an address stands there twice: {urls}: remove one")
    return bare


Address = Annotated[str, AfterValidator(_address)]
Addresses = Annotated[list[Address], AfterValidator(_distinct)]  # of servers of vLLM
Variable = Annotated[str, AfterValidator(_variable)]  # of the environment


class Generation(Section):
    """Who draws responses. Stages depend on `engine` alone: where servers stand may change."""

    engine: Literal["builtin", "vllm"] = Field(
        default="builtin", description="builtin: this program; vllm: servers of vLLM"
    )
    urls: Addresses = Field(
        default=[], description="of the servers, as in http://127.0.0.1:8000; they share the work"
    )
    start: bool = Field(
        default=False, description="start a server for each policy, on this machine, and end it"
    )
    python: str = Field(
        default=".venv-engine/bin/python",
        min_length=1,
        description="of the environment with vLLM (`make engine`), to start servers with",
    )
    options: list[str] = Field(
        default=[], description="more of the command line of servers that are started here"
    )
    concurrency: Positive = Field(
        default=16, le=1024, description="requests under way at each server, a prompt each"
    )
    timeout_seconds: Rate = Field(default=600.0, description="of a request")
    patience_seconds: Rate = Field(
        default=900.0, description="waited for a server that is away, in all, with growing waits"
    )
    api_key_variable: Variable | None = Field(
        default=None, description="variable of the environment that holds the servers' key"
    )
