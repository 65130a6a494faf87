"""Parquet tables: what is written comes back, what is wrong is named."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infalign.data.dialogue import read_prompts
from infalign.data.framing import asked
from infalign.errors import InputError
from infalign.files.tables import (
    CALIBRATION,
    PROMPTS,
    SAMPLES,
    read_table,
    write_table,
)

ROWS = {
    "prompt_id": ["a", "b"],
    "objective": ["helpful", "helpful"],
    "split": ["train", "test"],
    "source": ["x", "x"],
    "dialogue": [asked("one").text, asked("two").text],
    "columns": ["{}", "{}"],
}
CALIBRATED = {
    "prompt_id": ["a", "b"],
    "split": ["train", "test"],
    "n_reference": [2, 2],
    "rewards": [[0.5, 1.0], [1.0, 2.0]],
}


def test_round_trip_and_same_bytes(tmp_path):
    for name in ("first", "second"):
        write_table(tmp_path / name, ROWS, PROMPTS)
    assert read_table(tmp_path / "first", PROMPTS).to_pydict() == ROWS
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert read_prompts(tmp_path / "first", "helpful") == {"a": asked("one"), "b": asked("two")}
    assert read_prompts(tmp_path / "first", "helpful", "test") == {"b": asked("two")}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split": ["train", "dev"]}, "column split, row 1: 'dev' is not in"),
        ({"dialogue": ["one", None]}, "column dialogue, row 1: None is not allowed"),
        ({"prompt_id": ["a", "a"]}, "column objective+prompt_id, row 1"),
    ],
)
def test_faulty_text(tmp_path, change, words):
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table(ROWS | change), path)
    with pytest.raises(InputError) as error:
        read_table(path, PROMPTS)
    assert str(error.value).startswith(f"{path}, {words}")


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        ([[0.5, 1.0], [1.0, float("nan")]], "column rewards, row 1: nan is not a finite number"),
        ([[0.5, float("inf")], [1.0, 2.0]], "column rewards, row 0: inf is not a finite number"),
    ],
)
def test_numbers_that_are_not_finite(tmp_path, rewards, words):
    path = tmp_path / "calibration.parquet"
    schema = pa.schema([field.with_nullable(True) for field in CALIBRATION.schema])
    pq.write_table(pa.table(CALIBRATED | {"rewards": rewards}, schema=schema), path)
    with pytest.raises(InputError) as error:
        read_table(path, CALIBRATION)
    assert words in str(error.value)


def test_missing_column_type_and_file(tmp_path):
    path = tmp_path / "prompts.parquet"
    with pytest.raises(InputError, match="does not exist: run the stage that writes it"):
        read_table(path, PROMPTS)
    pq.write_table(pa.table({k: v for k, v in ROWS.items() if k != "source"}), path)
    with pytest.raises(InputError, match=r"missing: \['source'\]"):
        read_table(path, PROMPTS)
    pq.write_table(pa.table(ROWS | {"source": [1, 2]}), path)
    with pytest.raises(InputError, match="column source: found int64, needs string"):
        read_table(path, PROMPTS)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="is not a readable parquet file"):
        read_table(path, PROMPTS)


def test_a_fault_writes_nothing(tmp_path):
    path = tmp_path / "samples.parquet"
    columns = {
        "objective": ["o"],
        "prompt_id": ["a"],
        "sample_index": [0],
        "split": ["train"],
        "response": ["x"],
        "tokens": [[1]],
        "n_tokens": [1],
        "logp": [0.5],
        "finished": [True],
    }
    with pytest.raises(InputError, match="column logp, row 0"):
        write_table(path, columns, SAMPLES)
    assert list(tmp_path.iterdir()) == []
