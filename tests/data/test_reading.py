"""Places, splits, bounds, and files that are damaged in every way."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infalign.data.pairs import Limits, Options, Pair, Subset
from infalign.data.places import split_name
from infalign.data.reading import read_data
from infalign.errors import InputError
from tests.data.thirty import (
    FORMS,
    KINDS,
    PACKINGS,
    as_array,
    as_lines,
    as_parquet,
    thirty,
    write_rows,
)

LIMITS = Limits(10**9, 10**6)
PAIRS = thirty()
ROWS = [FORMS["ultrafeedback"](pair) for pair in PAIRS]


def prompts(pairs: list[Pair]) -> list[str]:
    return [pair.prompt.text for pair in pairs]


def read(path: Path, subset: str | None = None, **options: object) -> Subset:
    return read_data(path, subset, Options(LIMITS)._replace(**options))


def test_names_of_splits() -> None:
    for name, split in {
        "train-00000-of-00003.parquet": "train",
        "train_prefs.jsonl.gz": "train_prefs",
        "Test.json.zst": "Test",
        "0000.parquet": "",
        "train_part2.jsonl": "train",
        "validation-3.jsonl": "validation",
    }.items():
        assert split_name(Path(name)) == split


@pytest.mark.parametrize(
    ("folder", "subset"),
    [
        ("", None),
        ("data", None),
        ("one", "one"),
        ("one", None),
        ("one/data", "one"),
    ],
)
@pytest.mark.parametrize("layout", ["shards", "folders"])
def test_layouts_of_the_hub_and_shards(
    tmp_path: Path, folder: str, subset: str | None, layout: str
) -> None:
    spelt = {"shards": "{split}-0000{n}-of-00003.parquet", "folders": "{split}/000{n}.parquet"}
    for n in range(3):
        part = ROWS[:21][7 * n : 7 * n + 7]
        write_rows(tmp_path / folder / spelt[layout].format(split="train", n=n), part)
    write_rows(tmp_path / folder / spelt[layout].format(split="validation", n=0), ROWS[21:])
    (tmp_path / folder / "README.md").write_text("not data")
    (tmp_path / folder / "dataset_infos.json").write_text("{}")
    found = read(tmp_path, subset)
    assert prompts(found.train) == prompts(PAIRS[:21])
    assert prompts(found.test) == prompts(PAIRS[21:])
    assert len({pair.source for pair in found.train}) == 3


def test_splits_by_name(tmp_path: Path) -> None:
    for n, name in enumerate(("train_sft", "train_prefs", "test_prefs")):
        write_rows(tmp_path / f"{name}-00000-of-00001.parquet", ROWS[10 * n : 10 * n + 10])
    with pytest.raises(InputError, match=r"\['train_prefs', 'train_sft'\]: say which with data"):
        read(tmp_path)
    found = read(tmp_path, splits={"train": ["train_prefs"], "test": ["test_prefs"]})
    assert prompts(found.train) == prompts(PAIRS[10:20])
    assert prompts(found.test) == prompts(PAIRS[20:])
    assert [path.name for path in found.left_out] == ["train_sft-00000-of-00001.parquet"]
    alone = read(tmp_path, splits={"train": ["train_sft"]}, test_share=0.3)
    assert {*prompts(alone.train), *prompts(alone.test)} == set(prompts(PAIRS[:10]))
    with pytest.raises(InputError, match=r"has no split 'dev', which data\.splits"):
        read(tmp_path, splits={"test": ["dev"]})


def test_places_without_data(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_rows(tmp_path / name / "train.jsonl", ROWS)
    with pytest.raises(InputError, match=r"in the folders \['one', 'two'\]: name one of them"):
        read(tmp_path)
    with pytest.raises(InputError, match="is not a folder or file of data"):
        read(tmp_path / "none")
    write_rows(tmp_path / "one" / "train.parquet", ROWS)
    with pytest.raises(InputError, match=r"train.jsonl and .*train.parquet are both there"):
        read(tmp_path, "one")


def test_what_is_kept_depends_on_the_prompts_alone(tmp_path: Path) -> None:
    """In any order and any number of files, whole prompts, those with the lowest hashes."""
    pairs = [
        pair._replace(chosen=f"{pair.chosen}{n}")
        for pair in PAIRS
        for n in range(len(pair.chosen) % 3 + 1)
    ]
    rows = [FORMS["explicit_messages"](pair) for pair in pairs]
    chosen = []
    for seed in range(4):
        mixed = random.Random(seed).sample(rows, len(rows))
        cut = 5 + 9 * seed
        for number, part in enumerate((mixed[:cut], mixed[cut:])):
            write_rows(tmp_path / str(seed) / f"train-{number}.jsonl", part)
        found = read(tmp_path / str(seed), limits=LIMITS._replace(most_pairs=20))
        kept = found.train + found.test
        assert found.dropped["over_limit"] == len(rows) - len(kept)
        chosen.append(sorted(pair[:3] for pair in kept))
    assert chosen[0] == chosen[1] == chosen[2] == chosen[3]
    by_hash = sorted({pair.prompt for pair in pairs}, key=lambda prompt: prompt.share("kept"))
    sizes = [sum(pair.prompt == prompt for pair in pairs) for prompt in by_hash]
    most = max(n for n in range(len(sizes)) if sum(sizes[:n]) <= 20)
    assert {row[0] for row in chosen[0]} == set(by_hash[:most])
    assert len(chosen[0]) == sum(sizes[:most])


def test_bounds_in_bytes(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.parquet", ROWS)
    half = read(tmp_path, limits=LIMITS._replace(kept_bytes=15_000), test_share=0.4)
    assert 5 < len(half.train + half.test) < 25
    for kind in KINDS:
        path = write_rows(tmp_path / "one" / f"rows{kind}", ROWS)
        for limits, words in (
            (LIMITS._replace(file_bytes=300), "holds more than data.file_bytes = 300 bytes"),
            (LIMITS._replace(line_bytes=50), r"(line|item|row) 1 has more than data.line_bytes"),
        ):
            with pytest.raises(InputError, match=words) as caught:
                read(path, limits=limits)
            assert str(path) in str(caught.value)


ARRAYS = {
    "[": "breaks off|is not JSON",
    "[]": "is empty",
    "[1]": "item 1 is not a JSON object",
    '[{"prompt": "a"} {"prompt": "b"}]': "has '{' where a comma should be after item 1",
    '[{"prompt": "a"}': "breaks off after item 1",
    '[{"prompt": "a"},]': "item 2 is not JSON",
    '[{"prompt": "a"}] 1': "goes on after the end",
    '[{"prompt": "a", "b": [}]': "item 1 is not JSON",
    '[{"a": 1}, 12': "breaks off after item 2",
    "[" * 100_000: "item 1 is not JSON",
}


@pytest.mark.parametrize("text", ARRAYS)
def test_arrays_that_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(InputError, match=ARRAYS[text]) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1 << 16])
def test_an_array_is_read_alike_in_pieces_of_any_size(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infalign.data.rows.PIECE_BYTES", size)
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf " + as_array(ROWS))
    found = read(path, test_share=0.3)
    assert sorted(prompts(found.train + found.test)) == sorted(prompts(PAIRS))


MUTATIONS = 120  # of each kind and packing: 1,080 files


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_gives_data_or_one_sentence(tmp_path: Path, kind: str, packing: str) -> None:
    """Bits flipped, ends cut, pieces doubled, moved or zeroed, before and after packing."""
    rng = random.Random(f"{kind}{packing}")
    plain = {".jsonl": as_lines, ".json": as_array, ".parquet": as_parquet}[kind](ROWS)
    path = tmp_path / f"rows{kind}{packing}"
    sentences = 0
    for number in range(MUTATIONS):
        inside = number % 2
        data = damaged(plain, rng) if inside else PACKINGS[packing](plain)
        path.write_bytes(PACKINGS[packing](data) if inside else damaged(data, rng))
        said = ""
        try:
            found = read(path, test_share=0.5)
        except InputError as error:
            said = str(error)
        assert (str(path) in said and "\n" not in said) if said else (found.train and found.test)
        sentences += bool(said)
    assert sentences > MUTATIONS / 6


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one kind of damage."""
    at, end = sorted(rng.randrange(len(data)) for _ in range(2))
    kind = rng.randrange(5)
    if kind == 0:
        flipped = bytearray(data)
        for _ in range(rng.choice((1, 1, 3, 20))):
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:end] + data[at:]
    if kind == 3:
        return data[:at] + bytes(min(end - at, 30)) + data[min(end, at + 30) :]
    return data[:at] + data[end:]


MEASURED = """
import resource, sys
from pathlib import Path
from infalign.data.pairs import Limits, Options
from infalign.data.reading import read_data
started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = read_data(Path(sys.argv[1]), None, Options(Limits(10**10, 10**7, int(sys.argv[2]))))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started, len(found.train), found.lines)
"""


def test_memory_is_that_of_what_is_kept(tmp_path: Path) -> None:
    """60 MB of Parquet in one row group, of which 4 MB are kept."""
    path = tmp_path / "rows.parquet"
    rng = random.Random(0)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{n} {rng.randbytes(300).hex()}"}],
            "chosen": rng.randbytes(1000).hex(),
            "rejected": rng.randbytes(1000).hex(),
            "unread": rng.randbytes(500).hex(),
        }
        for n in range(12_000)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=len(rows), compression="none")
    assert path.stat().st_size > 60_000_000
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path), "4000000"],
        capture_output=True,
        text=True,
        check=True,
    )
    kilobytes, train, lines = map(int, done.stdout.split())
    assert lines == 12_000
    assert 200 < train < 1_000
    assert kilobytes < 40_000
