"""The HH file format: by hand, line by line, and every kind of bad file."""

import contextlib
import gzip
import json
import re
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infalign.data.dialogue import ASSISTANT, HUMAN, Dialogue, read_marked
from infalign.data.hh import split_text, write_pairs
from infalign.data.pairs import Limits, Options, Pair, Subset
from infalign.data.reading import read_data
from infalign.errors import InputError

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "hh-rlhf"
ONE = f"{HUMAN} Hi{ASSISTANT}"
LIMITS = Limits(10_000_000, 1_000_000)
TWO = f"{HUMAN} Hi{ASSISTANT} Hello.{HUMAN} Why?{ASSISTANT}"


def read_subset(folder: Path, name: str, test_share: float, limits: Limits) -> Subset:
    return read_data(folder, name, Options(limits, test_share))


def asked(text: str) -> Dialogue:
    """A text with markers as a dialogue."""
    dialogue = read_marked(text)
    assert dialogue is not None
    return dialogue


def line(chosen: str = f"{ONE} a", rejected: str = f"{ONE} b") -> str:
    return json.dumps({"chosen": chosen, "rejected": rejected})


def numbered(n: int) -> list[str]:
    return [line(f"{HUMAN} q{i}{ASSISTANT} a", f"{HUMAN} q{i}{ASSISTANT} b") for i in range(n)]


def put(folder: Path, lines: list[str], split: str = "train", end: str = "") -> Path:
    path = folder / "sub" / f"{split}.jsonl{end}"
    path.parent.mkdir(exist_ok=True)
    data = "".join(text + "\n" for text in lines).encode()
    path.write_bytes(gzip.compress(data) if end else data)
    return path


def test_splits_at_the_last_assistant_marker() -> None:
    assert split_text(f"{TWO} Because.\n") == (TWO, "Because.")
    assert split_text(f"{ONE}") == (ONE, "")


@pytest.mark.parametrize("text", ["hello", f"{HUMAN} Hi", f"x{ONE} a", f"{ONE} a{HUMAN} And?"])
def test_what_is_no_dialogue_ending_with_the_assistant(text: str) -> None:
    assert split_text(text) is None


def test_reads_two_files_and_counts_what_it_drops(tmp_path: Path) -> None:
    put(
        tmp_path,
        [
            *numbered(6),
            line(f"{TWO} a", f"{ONE} b"),
            line(f"{ONE} same", f"{ONE}  same "),
            line(f"{ONE} a", f"{ONE} "),
            '{"chosen": ',
            json.dumps({"rejected": f"{ONE} b"}),
            "",
        ],
    )
    put(tmp_path, [numbered(6)[5]], "test", ".gz")
    subset = read_subset(tmp_path, "sub", 0.2, LIMITS)
    marked = [pair.prompt.marked for pair in subset.train]
    assert marked == [f"{HUMAN} q{i}{ASSISTANT}" for i in range(5)]
    question = asked(f"{HUMAN} q5{ASSISTANT}")
    assert subset.test == [Pair(question, "a", "b", "sub/test.jsonl.gz")]
    assert subset.lines == 12
    assert {reason: n for reason, n in subset.dropped.items() if n} == {
        "broken_line": 2,
        "prompt_differs": 1,
        "identical_pair": 1,
        "empty_response": 1,
        "prompt_in_test": 1,
    }
    assert subset.first_broken == f"{tmp_path}/sub/train.jsonl line 10 is not JSON"


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_single_file_is_split_by_prompt(tmp_path: Path, split: str) -> None:
    put(tmp_path, numbered(50) * 2, split)
    subset = read_subset(tmp_path, "sub", 0.3, LIMITS)
    train, test = ({pair.prompt for pair in part} for part in (subset.train, subset.test))
    assert not train & test
    assert len(train | test) == 50
    assert len(subset.train) == 2 * len(train)
    assert 5 < len(test) < 25


def test_what_is_written_is_read_back_and_has_fixed_bytes(tmp_path: Path) -> None:
    pairs = [Pair(asked(TWO), "é “x”", f"y\n{i}", "sub/train.jsonl.gz") for i in range(3)]
    paths = [tmp_path / "sub" / "train.jsonl.gz", tmp_path / "other" / "again.jsonl.gz"]
    for path in paths:
        write_pairs(path, pairs)
    put(tmp_path, numbered(1), "test")
    assert read_subset(tmp_path, "sub", 0.2, LIMITS).train == pairs
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes()[4:8] == bytes(4)  # the time in the gzip header


BAD_FIRST_LINES = {
    "not JSON": ("id,text", "line 1 is not JSON"),
    "another object": ("1", "line 1 is not a JSON object"),
    "an array": ("[1]", "goes on after the end of its JSON array"),
    "no chosen": ('{"prompt": "x", "rejected": "y"}', "line 1 has no 'chosen' text"),
    "chosen null": (json.dumps({"chosen": None, "rejected": "y"}), "has no 'chosen' text"),
    "no rejected": (json.dumps({"chosen": f"{ONE} a"}), "line 1 has no 'rejected' text"),
    "no markers": (line("a", "b"), "line 1 has a 'chosen' that is no dialogue"),
    "half a character": (line(f"{ONE} \ud800"), "line 1 has a 'chosen' text that is not valid"),
    "deep nesting": ("[" * 100000, "item 1 is not JSON"),
    "a deep object": ('{"a":' * 100000, "line 1 is not JSON"),
    "5,000 digits": (f'{{"n": {"9" * 5000}}}', "line 1 is not JSON"),
    "a raw NUL": (line().replace("Hi", "H\0i"), "line 1 is not JSON"),
}


@pytest.mark.parametrize("name", BAD_FIRST_LINES)
def test_a_file_that_is_not_hh_is_an_error_with_file_and_line(tmp_path: Path, name: str) -> None:
    text, message = BAD_FIRST_LINES[name]
    path = put(tmp_path, [text, *numbered(500)])
    with pytest.raises(InputError, match=r"HH format|JSON array") as caught:
        read_subset(tmp_path, "sub", 0.2, LIMITS)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_stray_broken_lines_are_counted_many_are_an_error(tmp_path: Path) -> None:
    put(tmp_path, [*numbered(600), *["{"] * 6])
    assert read_subset(tmp_path, "sub", 0.2, LIMITS).dropped["broken_line"] == 6
    put(tmp_path, [*numbered(600), *["{"] * 7])
    with pytest.raises(InputError, match=r"line 601 is not JSON \(7 of the 607 rows"):
        read_subset(tmp_path, "sub", 0.2, LIMITS)


def test_broken_archives_and_encodings(tmp_path: Path) -> None:
    path = put(tmp_path, numbered(50), end=".gz")
    whole = path.read_bytes()
    for data, message in (
        (whole[:-20], "truncated gzip file"),
        (whole[:5], "truncated gzip file"),
        (b"plain text", "not a sound gzip file"),
        (whole[:40] + bytes(20) + whole[60:], "gzip file"),
        (gzip.compress(numbered(1)[0].encode() + b"\n\xff\n"), "line 2 is not UTF-8"),
        (b"", "is empty"),
        (gzip.compress(b"\n\n"), "is empty"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=message) as caught:
            read_subset(tmp_path, "sub", 0.2, LIMITS)
        assert str(path) in str(caught.value)


NASTY = [
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\n",
    b"\r",
    b'"',
    b"\\u0000",
    b"\\ud800",
    b"9" * 5000,
    b'{"n":' * 20_000,
    b"[" * 100_000,
    b"NaN",
    b"1e999",
    "\u2028".encode(),
    b" " * 300_000,
]


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 40), st.sampled_from(NASTY) | st.binary()),
        max_size=4,
    ),
    st.sampled_from(["", ".gz"]),
    st.booleans(),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_spoilt_file_gives_data_or_one_sentence(
    tmp_path: Path, changes: list[tuple[float, int, bytes]], end: str, packed: bool
) -> None:
    """Bytes are replaced anywhere, before the file is packed or after."""
    path = tmp_path / "sub" / f"train.jsonl{end}"
    path.parent.mkdir(exist_ok=True)
    (tmp_path / "sub" / f"train.jsonl{'' if end else '.gz'}").unlink(missing_ok=True)
    data = "\n".join(numbered(30)).encode()
    data = gzip.compress(data) if end and packed else data
    for place, length, new in changes:
        start = round(place * len(data))
        data = data[:start] + new + data[start + length :]
    path.write_bytes(gzip.compress(data) if end and not packed else data)
    try:
        subset = read_subset(tmp_path, "sub", 0.5, LIMITS._replace(line_bytes=200_000))
    except InputError as error:
        said = str(error)
        assert str(path.parent) in said
        return
    pairs = subset.train + subset.test
    assert 0 < len(pairs) <= subset.lines
    assert all(f"{pair.prompt.text}{pair[1:]}".encode() for pair in pairs)


def test_bounds_on_a_file_and_on_a_line(tmp_path: Path) -> None:
    lines = numbered(40)
    longest, whole = max(map(len, lines)), sum(len(text) + 1 for text in lines)
    for end in ("", ".gz"):
        path = put(tmp_path, lines, end=end)
        exact = Limits(whole, longest)
        assert read_subset(tmp_path, "sub", 0.2, exact).lines == 40
        for limits, words in (
            (Limits(whole - 1, longest), f"holds more than data.file_bytes = {whole - 1} bytes"),
            (Limits(whole, longest - 1), f"has more than data.line_bytes = {longest - 1} bytes"),
        ):
            with pytest.raises(InputError, match=words) as caught:
                read_subset(tmp_path, "sub", 0.2, limits)
            assert str(path) in str(caught.value)
        path.unlink()


@pytest.mark.parametrize("filling", [b" ", b" " * 999 + b"\n"], ids=["one line", "many lines"])
def test_a_small_archive_of_much_is_never_unpacked_as_a_whole(
    tmp_path: Path, filling: bytes
) -> None:
    path = put(tmp_path, numbered(20), end=".gz")
    with gzip.open(path, "ab") as stream:
        for _ in range(50):
            stream.write(filling * (1_000_000 // len(filling)))
    tracemalloc.start()
    try:
        with contextlib.suppress(InputError):
            read_subset(tmp_path, "sub", 0.2, Limits(100_000_000, 1_000_000))
        with pytest.raises(InputError, match=r"data\.(file|line)_bytes"):
            read_subset(tmp_path, "sub", 0.2, Limits(40_000_000, 1_000_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000, f"{peak} bytes for a file of {path.stat().st_size}"


def test_a_subset_that_a_link_takes_out_of_the_data_is_refused(tmp_path: Path) -> None:
    put(tmp_path, numbered(50))
    data = tmp_path / "data"
    data.mkdir()
    (data / "sub").symlink_to(tmp_path / "sub")
    with pytest.raises(InputError, match="leads out of the data's folder") as caught:
        read_subset(data, "sub", 0.2, LIMITS)
    assert str(data / "sub") in str(caught.value)
    (data / "inside").mkdir()
    (tmp_path / "sub" / "train.jsonl").rename(data / "inside" / "train.jsonl")
    (data / "sub").unlink()
    (data / "sub").symlink_to("inside")
    assert read_subset(data, "sub", 0.2, LIMITS).lines == 50


def test_missing_and_doubled_places(tmp_path: Path) -> None:
    def fails(folder: Path, message: str) -> None:
        with pytest.raises(InputError, match=re.escape(message)):
            read_subset(folder, "sub", 0.2, LIMITS)

    fails(tmp_path / "nowhere", "is not a folder")
    fails(tmp_path, "has no subset folder 'sub' (it has [])")
    (tmp_path / "sub").mkdir()
    fails(tmp_path, "has none of train.jsonl")
    put(tmp_path, numbered(3))
    put(tmp_path, numbered(3), end=".gz")
    fails(tmp_path, "are both there")


def test_a_split_that_is_left_without_a_pair_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, [line(f"{ONE} a", f"{ONE} a")])
    with pytest.raises(InputError, match=r"no usable pair for its train split.*identical_pair"):
        read_subset(tmp_path, "sub", 0.2, LIMITS)
    put(tmp_path, numbered(4))
    put(tmp_path, numbered(4), "test")
    with pytest.raises(InputError, match="no usable pair for its train split"):
        read_subset(tmp_path, "sub", 0.2, LIMITS)


def test_the_real_data_counted_by_plain_loops() -> None:
    if not REAL.is_dir():
        pytest.skip(f"the real HH data is not at {REAL}")
    for name in ("helpful-base", "harmless-base"):
        expected: Counter[str] = Counter()
        lines = gzip.decompress((REAL / name / "test.jsonl.gz").read_bytes()).splitlines()
        for text in lines:
            row = json.loads(text)
            (first, _, chosen), (second, _, rejected) = (
                row[side].rpartition(ASSISTANT) for side in ("chosen", "rejected")
            )
            if first != second:
                expected["prompt_differs"] += 1
            elif chosen.strip() == rejected.strip():
                expected["identical_pair"] += 1
            elif not (chosen.strip() and rejected.strip()):
                expected["empty_response"] += 1
        subset = read_subset(REAL, name, 0.2, LIMITS)
        assert subset.lines == len(lines)
        assert +subset.dropped == expected
        assert len(subset.train) + len(subset.test) == len(lines) - expected.total()
        assert 0.15 < len(subset.test) / len(lines) < 0.25
