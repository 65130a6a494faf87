"""Thirty pairs in every form that preference data has, and every kind of file."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infalign.data.dialogue import Dialogue
from infalign.data.pairs import Pair

Row = dict[str, Any]


def thirty() -> list[Pair]:
    """Pairs with one, two or three turns of the user."""
    pairs = []
    for n in range(30):
        turns = [("user", f"Wie heißt Nummer {n}?")]
        for reply in range(n % 3):
            turns += [("assistant", f"It is {reply}."), ("user", f"Sure, {n}?\nAnd why {reply}?")]
        pairs.append(Pair(Dialogue.of(turns), f"Well, “yes”, {n}.\n\nIt is.", f"No {n}", "x"))
    return pairs


def single(pairs: list[Pair]) -> list[Pair]:
    """Those whose prompt is one turn of the user."""
    return [pair for pair in pairs if len(pair.prompt.turns) == 1]


def said(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text}]


def hh(pair: Pair) -> Row:
    return {name: f"{pair.prompt.marked} {getattr(pair, name)}" for name in ("chosen", "rejected")}


def marked_prompt(pair: Pair) -> Row:
    return {"prompt": pair.prompt.marked, "chosen": pair.chosen, "rejected": pair.rejected}


def explicit_messages(pair: Pair) -> Row:
    prompt = pair.prompt.messages
    return {"prompt": prompt, "chosen": said(pair.chosen), "rejected": said(pair.rejected)}


def implicit_messages(pair: Pair) -> Row:
    prompt = pair.prompt.messages
    return {"chosen": prompt + said(pair.chosen), "rejected": prompt + said(pair.rejected)}


def ultrafeedback(pair: Pair) -> Row:
    scores = {"score_chosen": 8.0, "score_rejected": 3.5}
    return implicit_messages(pair) | {"prompt": pair.prompt.turns[0].content} | scores


def messages_and_texts(pair: Pair) -> Row:
    return {"prompt": pair.prompt.messages, "chosen": pair.chosen, "rejected": pair.rejected}


def strength(pair: Pair) -> Row:
    number = int(pair.rejected.split()[1])
    first, second = (pair.chosen, pair.rejected)[:: 1 if number % 2 else -1]
    return {
        "prompt": pair.prompt.messages,
        "response_1": first,
        "response_2": second,
        "preference_strength": -1 - number % 3 if number % 2 else 1 + number % 3,
    }


def scores(pair: Pair) -> Row:
    row = strength(pair)
    lead = row.pop("preference_strength")
    return row | {"score_1": 0.5 - lead, "score_2": 0.5}


def texts(pair: Pair) -> Row:
    return {
        "prompt": pair.prompt.turns[0].content,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
    }


def implicit_texts(pair: Pair) -> Row:
    prompt = pair.prompt.turns[0].content
    return {"chosen": f"{prompt} {pair.chosen}", "rejected": f"{prompt} {pair.rejected}"}


FORMS: dict[str, Callable[[Pair], Row]] = {
    form.__name__: form
    for form in (
        hh,
        marked_prompt,
        explicit_messages,
        implicit_messages,
        ultrafeedback,
        messages_and_texts,
        strength,
        scores,
    )
}
OF_ONE_TURN: dict[str, Callable[[Pair], Row]] = {
    form.__name__: form for form in (texts, implicit_texts)
}


def zstd(data: bytes) -> bytes:
    """The data as a zstd file."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue().to_pybytes())


def as_lines(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_array(rows: list[Row]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def as_parquet(rows: list[Row], group: int = 7) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=group)
    return bytes(sink.getvalue().to_pybytes())


KINDS = {".jsonl": as_lines, ".json": as_array, ".parquet": as_parquet}
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstd,
}


def write_rows(path: Path, rows: list[Row]) -> Path:
    """Write rows as the kind of file and packing that the name says."""
    packing = next((end for end in (".gz", ".zst") if path.name.endswith(end)), "")
    kind = Path(path.name.removesuffix(packing)).suffix
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PACKINGS[packing](KINDS[kind](rows)))
    return path
