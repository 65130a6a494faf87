"""What is read of files: every form the same, and one sentence for what is wrong."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infalign.errors import InputError
from infalign.instrument import reading
from infalign.instrument.reading import read_columns
from infalign.instrument.samples import on_common_prompts, read_side

ROWS = [
    {"prompt_id": "b", "prompt": "Two?", "reward": 1, "kl": 0.5, "meta": {"any": 1}},
    {"prompt_id": "a", "prompt": "One?", "reward": -2.5, "kl": 0.25, "meta": None},
    {"prompt_id": "b", "prompt": "Two?", "reward": 3.0, "kl": 0.0},
]


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(path: Path, rows: list[dict]) -> Path:
    """Rows in the form of the path's suffix."""
    if path.suffix == ".parquet":
        names = ("prompt_id", "prompt", "reward", "kl")
        pq.write_table(pa.table({n: [row[n] for row in rows] for n in names}), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines(rows).encode()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text(lines(rows))
    return path


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.parquet", "folder", "rows"])
def test_every_form_gives_the_same_samples(name: str, tmp_path: Path) -> None:
    if name == "rows":
        source = [dict(row) for row in ROWS]
    elif name == "folder":
        source = tmp_path / name
        source.mkdir()
        write(source / "1.jsonl", ROWS[:2])
        write(source / "2.jsonl", ROWS[2:])
    else:
        source = write(tmp_path / name, ROWS)
    found = read_side(source, "mine", "reward", ())
    assert found.prompts == ["a", "b"]
    assert found.counts.tolist() == [1, 2]
    assert found.rewards["selecting"].tolist() == [-2.5, 1.0, 3.0]
    assert found.numbers["kl"].tolist() == [0.25, 0.5, 0.0]
    columns = {n: [row[n] for row in ROWS] for n in ("prompt_id", "reward")}
    for table in (columns, {n: np.array(x) for n, x in columns.items()}, pa.table(columns)):
        again = read_side(table, "mine", "reward", ())
        assert again.rewards["selecting"].tolist() == found.rewards["selecting"].tolist()


def test_a_pandas_table_is_taken() -> None:
    found = read_side(pandas.DataFrame(ROWS), "mine", "reward", ())
    assert found.rewards["selecting"].tolist() == [-2.5, 1.0, 3.0]


def test_messages_name_a_prompt_whatever_the_order_of_their_keys() -> None:
    rows = [
        {"prompt": [{"role": "user", "content": "Hi"}], "reward": 1.0},
        {"prompt": [{"content": "Hi", "role": "user"}], "reward": 2.0},
        {"prompt": 7, "reward": 3.0},
    ]
    found = read_side(rows, "mine", "reward", ())
    assert sorted(found.counts.tolist()) == [1, 2]
    assert "7" in found.prompts


def test_sample_index_orders_a_prompts_samples(tmp_path: Path) -> None:
    rows = [{"prompt_id": "a", "sample_index": i, "reward": float(i)} for i in (2, 0, 1)]
    found = read_side(rows, "mine", "reward", ())
    assert found.rewards["selecting"].tolist() == [0.0, 1.0, 2.0]


def told(source: object, **options: object) -> str:
    with pytest.raises(InputError) as error:
        read_side(source, "mine", "reward", (), **options)  # type: ignore[arg-type]
    return str(error.value)


def test_numbers_of_every_kind_are_numbers() -> None:
    kinds = [1, 2.5, True, 2**70, np.float32(3), Decimal("4.5")]
    found = read_side([{"prompt": "a", "reward": kind} for kind in kinds], "mine", "reward", ())
    assert found.rewards["selecting"].tolist() == [1.0, 2.5, 1.0, 2.0**70, 3.0, 4.5]


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "null", '"0.5"', "[1]", "{}", "1" + "0" * 400, "1e999"]
)
def test_a_reward_that_is_no_number_is_named_with_its_line(value: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    good = lines([{"prompt_id": "a", "reward": 1.0}])
    path.write_text(good + "\n" + good + f'{{"prompt_id": "a", "reward": {value}}}\n')
    said = told(path)
    assert said.startswith(f"{path}, line 4: reward is ")
    assert "leave its row out" in said


def test_rows_are_numbered_across_blocks_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LINES", 2)
    good = [{"prompt_id": "a", "reward": 1.0}] * 5
    write(tmp_path / "1.jsonl", good)
    path = tmp_path / "2.jsonl"
    path.write_text(lines(good[:3]) + "\n" + '{"prompt_id": "a", "reward": NaN}\n')
    assert told(tmp_path).startswith(f"{path}, line 5: reward is nan")
    path.write_text(lines(good[:3]) + "{broken\n")
    assert told(tmp_path) == f"{path}, line 4: not a JSON object: write one a line."
    path.write_text(lines(good[:3]) + '{"prompt_id": "a"}\n')
    assert told(tmp_path).startswith(f"{path}, line 4: has no 'reward'")


def test_one_line_that_looks_like_two_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt_id": "a", "reward": 1}, {"prompt_id": "a", "reward": 2}\n')
    assert "line 1: not a JSON object" in told(path)


@pytest.mark.parametrize("line", [b"[" * 100_000, b"\xff\xfe\x00", b'"text"', b"nonsense"])
def test_what_is_no_json_is_named_with_its_line(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(lines(ROWS).encode() + line + b"\n")
    assert told(path) == f"{path}, line 4: not a JSON object: write one a line."
    (tmp_path / "mine.json").write_bytes(line)
    assert str(tmp_path / "mine.json") in told(tmp_path / "mine.json")


def test_what_is_missing_is_said_with_what_is_there(tmp_path: Path) -> None:
    said = told(write(tmp_path / "mine.jsonl", [{"prompt": "Hi", "score": 1.0}]))
    assert "has no column 'reward' but prompt, score: name one of them with --reward" in said
    said = told(write(tmp_path / "mine.jsonl", [{"question": "Hi", "reward": 1.0}]))
    assert "has no column prompt_id or prompt but question, reward" in said
    assert told(tmp_path / "absent.jsonl") == f"{tmp_path / 'absent.jsonl'} does not exist."
    assert "holds no rows" in told([])
    (tmp_path / "run" / "evaluate" / "helpful").mkdir(parents=True)
    assert told(tmp_path / "run").endswith(f": give {tmp_path / 'run' / 'evaluate' / 'helpful'}.")
    long = [{"policy": "ctrl", "prompt_id": "a", "judge": "gold", "reward": 1.0}]
    assert told(long).endswith("give its folder.")
    (tmp_path / "mine.csv").write_text("a")
    assert "must end in one of .jsonl" in told(tmp_path / "mine.csv")
    (tmp_path / "mine.parquet").write_text("a")
    assert "is not a readable Parquet file" in told(tmp_path / "mine.parquet")
    assert "mine is a int: pass a path" in told(7)
    assert "must be alike" in told({"prompt_id": ["a"], "reward": [1.0, 2.0]})


def test_ids_that_are_there_twice_are_refused() -> None:
    twice = [{"prompt_id": "a", "sample_index": 0, "reward": 1.0}] * 2
    assert told(twice).startswith("mine, row 1: sample_index 0 of prompt 'a' is in mine, row 0")
    shared = [{"prompt_id": "a", "prompt": text, "reward": 1.0} for text in ("Hi", "Ho")]
    assert told(shared).startswith("mine, row 1: prompt_id 'a' stood for another prompt in mine, ")


def test_without_pyarrow_parquet_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "mine.parquet", ROWS)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert "needs pyarrow" in told(path)


def test_responses_are_kept_only_where_log_probabilities_are() -> None:
    rows = [{"prompt": "a", "response": "x", "reward": 1.0}]
    assert read_side(rows, "mine", "reward", ()).responses == []
    assert read_side([rows[0] | {"logp": -1.0}], "mine", "reward", ()).responses == ["x"]
    assert read_columns(rows, ("prompt",), ("reward",), "mine").rows == 1


def test_an_id_that_is_another_prompt_in_another_file_is_refused() -> None:
    rows = [
        {"prompt_id": name, "prompt": text, "reward": float(n)}
        for name, text in (("a", "One?"), ("b", "Two?"))
        for n in range(2)
    ]
    other = [row | {"prompt": {"One?": "Two?", "Two?": "One?"}[str(row["prompt"])]} for row in rows]
    reference, mine, bare = (
        read_side(side, name, "reward", ())
        for side, name in (
            (rows, "reference"),
            (other, "mine"),
            ([{k: row[k] for k in ("prompt_id", "reward")} for row in other], "bare"),
        )
    )
    with pytest.raises(InputError, match=r"prompt_id 'a' is another prompt \('Two\?'\) than in"):
        on_common_prompts(reference, [mine], 1, leave_out=False)
    assert on_common_prompts(reference, [bare], 1, leave_out=False)[2] == 0


def test_a_judge_cannot_take_the_selecting_rewards_place() -> None:
    rows = [{"prompt_id": "a", "reward": 1.0, "selecting": 2.0}]
    with pytest.raises(InputError, match="'selecting' is what the reward is called"):
        read_side(rows, "mine", "reward", ("selecting",))
    found = read_side(rows, "mine", "selecting", ("selecting", "reward"))
    assert list(found.rewards) == ["selecting", "reward"]
    assert found.rewards["selecting"].tolist() == [2.0]
