"""A scoring server as clients of other interfaces see it: chat, counts, the log, feedback."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from flows.serving.log import ANSWERS, FEEDBACK, Log, as_parquet, load_redact, read_log
from flows.serving.requests import Reader, Refused
from flows.serving.routes import CHAT, read_feedback
from infalign.errors import InputError
from tests.flows.serving.conftest import LIMITS, Scoring

SECRET = "hunter2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log")


@pytest.fixture(scope="module")
def server(packaged: Path, scoring: Callable[..., Any], folder: Path) -> Iterator[Scoring]:
    own = folder / "own.py"
    own.write_text(f'def clean(text):\n    return text.replace("{SECRET}", "***")\n')
    with scoring(packaged, log=folder / "log", redact=f"{own}:clean", log_rows=4) as one:
        yield one


def asks(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 3, **more}


def get(server: Scoring, path: str) -> httpx.Response:
    return httpx.get(server.url.replace("/invocations", path), timeout=60, verify=False)


def test_a_chat_is_answered_as_clients_expect(server: Scoring) -> None:
    answer = server.post(asks("one two", seed=3, n=2), CHAT)
    assert answer.status_code == 200
    said = answer.json()
    assert said["object"] == "chat.completion"
    assert [choice["index"] for choice in said["choices"]] == [0, 1]
    usage, own = said["usage"], said["infalign"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert own["procedure"] == "best_of:4"
    for choice in own["choices"]:
        assert choice["reward"] == max(choice["rewards"])
        assert len(choice["rewards"]) == 4
    # The same as `/invocations` say, and the same again.
    body = {"inputs": ["one two"], "params": {"seed": 3, "max_new_tokens": 3}}
    [invoked] = server.post(body).json()["predictions"]
    assert invoked["response"] == said["choices"][0]["message"]["content"]
    assert invoked["reward"] == pytest.approx(own["choices"][0]["reward"], abs=1e-5)
    again = server.post(asks("one two", seed=3, n=2), CHAT).json()
    assert again["choices"] == said["choices"]
    assert own["choices"][0]["seed"] == 3
    assert own["choices"][1]["seed"] not in (0, 3)
    other = server.post(asks("one two", seed=4, infalign={"procedure": "best_of", "n": 0}), CHAT)
    assert other.status_code == 400
    most = server.post(asks("one two", infalign={"n": 9}, max_tokens=10_000), CHAT).json()
    assert len(most["infalign"]["choices"][0]["rewards"]) == 9


def test_a_stream_says_the_kept_answer(server: Scoring) -> None:
    whole = server.post(asks("one two", seed=3), CHAT).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    answer = server.post(asks("one two", seed=3, **options), CHAT)
    assert answer.headers["content-type"] == "text/event-stream"
    *lines, end = [line for line in answer.text.split("\n\n") if line]
    assert end == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    deltas = [c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]]
    assert "".join(deltas) == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[-2]["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"messages": []}, 400, "messages must be a list"),
        ({}, 400, "messages must be a list"),
        ([1], 400, "must be a mapping"),
        (asks("one", top_p=0.9), 400, "top_p = 0.9 is not supported"),
        (asks("one", stop=["x"]), 400, "stop = .* is not supported"),
        (asks("one", tools=[{"type": "function"}]), 400, "tools = .* is not supported"),
        (asks("one", model="gpt-4"), 404, 'model "gpt-4" is not served here'),
        (asks("one", colour=1), 400, "'colour' is not known here"),
        (asks("one", n=0), 400, "n must be a whole number, 1 to"),
        (asks("one", n=True), 400, "n must be a whole number"),
        (asks("one", temperature="hot"), 400, "temperature is not a finite number"),
        (asks("one", temperature=99), 400, "temperature is 99, but must lie between"),
        (asks("one", infalign={"N": 3}), 400, "infalign must be a mapping with procedure and n"),
        (asks("one", infalign={"n": 1000}), 400, "n = 1000 must be a whole number, 1 to"),
        (asks(""), 400, "not a text with a question"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "no text"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(
    server: Scoring, body: Any, status: int, words: str
) -> None:
    answer = server.post(body, CHAT)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert re.search(words, error["message"]), error
    assert "Traceback" not in answer.text


def test_parts_of_text_and_a_developers_words_are_read(server: Scoring) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    messages = [{"role": "user", "content": parts, "name": None}]
    answer = server.post({"messages": messages, "seed": 3, "max_tokens": 3, "top_p": 1}, CHAT)
    plain = server.post(asks("one two", seed=3), CHAT)
    assert answer.json()["choices"] == plain.json()["choices"]


def test_models_and_counts(server: Scoring) -> None:
    [model] = get(server, "/v1/models").json()["data"]
    assert server.post(asks("one two", model=model["id"]), CHAT).status_code == 200
    counts = {}
    for family in text_string_to_metric_families(get(server, "/metrics").text):
        for sample in family.samples:
            counts[sample.name] = sample.value
    assert counts["infalign_prompts_total"] >= 1
    assert counts["infalign_responses_total"] >= 4
    assert counts["infalign_waiting_prompts"] == 0


def test_too_many_are_refused_with_a_time_to_come_again(
    packaged: Path, scoring: Callable[..., Any]
) -> None:
    with scoring(packaged, waiting=2) as one, ThreadPoolExecutor(24) as pool:
        bodies = [asks("one two", infalign={"n": 64}, max_tokens=0)] * 24
        answers = list(pool.map(lambda body: one.post(body, CHAT), bodies))
        few = one.post({"inputs": ["one"] * 4})
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert "prompts wait already: come again" in refused.json()["error"]["message"]
    assert few.status_code == 200  # more than may wait, but nobody does


def test_the_log_has_every_answer_and_no_secret(server: Scoring, folder: Path) -> None:
    names = set()
    for number in range(6):
        body = asks(f"one {SECRET} two", seed=number, n=1 + number % 2)
        said = server.post(body, CHAT).json()
        names.add(said["id"])
    kept = said
    invoked = server.post({"inputs": ["three", "four"], "params": {"max_new_tokens": 2}})
    names.add(invoked.headers["x-infalign-id"])
    given = {"id": kept["id"], "rating": 1, "correction": f"say {SECRET}"}
    assert server.post(given, "/feedback").json() == {"status": "written"}
    rows = read_log(folder / "log", ANSWERS).to_pylist()
    mine = [row for row in rows if row["id"] in names]
    assert {row["id"] for row in mine} == names
    assert len(mine) == 6 + 3 + 2
    [row] = [row for row in mine if row["id"] == kept["id"] and row["choice"] == 0]
    assert row["responses"][row["kept"]] == kept["choices"][0]["message"]["content"]
    assert row["rewards"] == kept["infalign"]["choices"][0]["rewards"]
    assert json.loads(row["dialogue"])[0]["content"] == "one *** two"
    [feedback] = read_log(folder / "log", FEEDBACK).to_pylist()
    assert (feedback["rating"], feedback["correction"]) == (1.0, "say ***")
    files = list((folder / "log").iterdir())
    assert any(file.suffix == ".parquet" for file in files)
    assert all(SECRET.encode() not in file.read_bytes() for file in files)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ([], "feedback has choice, correction, id, preferred, rating"),
        ({"id": "x", "mood": 1}, "and nothing else"),
        ({"id": "", "rating": 1}, "id must be the id of an answer"),
        ({"id": "x"}, "says preferred, rating or correction"),
        ({"id": "x", "rating": 2}, "rating must be a number, -1"),
        ({"id": "x", "rating": True}, "rating must be a number"),
        ({"id": "x", "preferred": -1}, "preferred must be a whole number, 0 to 63"),
        ({"id": "x", "correction": " "}, "correction must be the text"),
    ],
)
def test_feedback_that_says_nothing_is_refused(tree: Any, words: str) -> None:
    with pytest.raises(Refused, match=words):
        read_feedback(tree, 64)


def rows_of(log: Log, number: int) -> None:
    for place in range(number):
        log.add_feedback(f"name-{place}", 0, None, 1.0, "a text " * 20)


def test_a_journal_that_a_kill_left_is_finished_by_the_next_server(tmp_path: Path) -> None:
    log = Log(tmp_path, LIMITS, tmp_path)
    rows_of(log, 3)
    [journal] = tmp_path.glob(".feedback-*.jsonl")
    left = tmp_path / ".feedback-1-2.jsonl"
    left.write_bytes(journal.read_bytes() + b'{"id": "half')
    Log(tmp_path, LIMITS, tmp_path)  # the other's journal is at work, and stays
    assert journal.exists()
    assert not left.exists()
    assert len(read_log(tmp_path, FEEDBACK)) == 6
    log.close()
    assert len(read_log(tmp_path, FEEDBACK)) == 6
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}


def test_a_text_with_other_ends_of_lines_is_one_row(tmp_path: Path) -> None:
    log = Log(tmp_path, LIMITS, tmp_path)
    text = "one\u2028two\u2029three\u0085four\x1cfive"
    log.add_feedback("x", 0, None, None, text)
    assert read_log(tmp_path, FEEDBACK)["correction"].to_pylist() == [text]
    log.close()
    assert read_log(tmp_path, FEEDBACK)["correction"].to_pylist() == [text]


def test_feedback_outlives_answers_whenever_its_journal_was_opened(tmp_path: Path) -> None:
    rows = [{"id": "x", "choice": 0, "time": 1, "rating": 1.0}]
    (tmp_path / ".feedback-1-2.jsonl").write_text(json.dumps(rows[0]) + "\n")
    as_parquet(tmp_path / ".feedback-1-2.jsonl")
    limits = LIMITS.model_copy(update={"log_rows": 1, "log_bytes": 1})
    log = Log(tmp_path, limits, tmp_path)
    (tmp_path / ".answers-5-2.jsonl").write_text(json.dumps({"id": "y", "choice": 0}) + "\n")
    as_parquet(tmp_path / ".answers-5-2.jsonl")
    log.add_feedback("z", 0, None, 1.0, None)
    assert len(read_log(tmp_path, ANSWERS)) == 0
    assert "z" in read_log(tmp_path, FEEDBACK)["id"].to_pylist()


def test_the_log_is_bounded_and_the_oldest_goes(tmp_path: Path) -> None:
    limits = LIMITS.model_copy(update={"log_rows": 2, "log_bytes": 6000})
    log = Log(tmp_path, limits, tmp_path)
    rows_of(log, 40)
    log.close()
    files = list(tmp_path.glob("*.parquet"))
    assert 1 <= len(files) < 20
    assert sum(file.stat().st_size for file in files) <= 6000
    assert read_log(tmp_path, FEEDBACK)["id"].to_pylist()[-1] == "name-39"


def test_a_share_of_the_answers_is_written(tmp_path: Path) -> None:
    log = Log(tmp_path, LIMITS.model_copy(update={"log_share": 0.25}), tmp_path)
    written = sum(log.samples(f"name-{number}") for number in range(4000))
    assert 900 <= written <= 1100


@pytest.mark.parametrize(
    ("text", "spelling", "words"),
    [
        ("", "own.py:clean", "has no function 'clean'"),
        ("def clean(t): return 1", "own.py:clean", "gave int for a text"),
        ("def clean(t): raise KeyError(t)", "own.py:clean", "failed on a text"),
        ("def clean(t): return t", "other.py:clean", "no such file"),
        ("def clean(t): return t", "clean", "no such file"),
        ("def clean(", "own.py:clean", "line 1"),
    ],
)
def test_a_redaction_that_cannot_be_is_one_sentence(
    tmp_path: Path, text: str, spelling: str, words: str
) -> None:
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(InputError, match=words):
        load_redact(spelling, tmp_path)


def test_what_cannot_be_redacted_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text("def clean(t):\n    assert t == 'a text'\n    return t\n")
    limits = LIMITS.model_copy(update={"redact": "own.py:clean"})
    log = Log(tmp_path / "log", limits, tmp_path)
    assert not log.add_feedback("x", 0, None, None, SECRET)
    assert log.add_feedback("y", 0, None, 1.0, None)
    log.close()
    assert read_log(tmp_path / "log", FEEDBACK)["id"].to_pylist() == ["y"]
    assert "1 rows are not written, because serving.redact failed" in capsys.readouterr().err


def test_an_empty_journal_leaves_no_file(tmp_path: Path) -> None:
    journal = tmp_path / ".feedback-1-2.jsonl"
    journal.touch()
    as_parquet(journal)
    assert not list(tmp_path.iterdir())


def test_a_log_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give the folder of `infalign serve --log`"):
        read_log(tmp_path / "none", ANSWERS)
    (tmp_path / "answers-1-2.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"answers-1-2\.parquet is broken"):
        read_log(tmp_path, ANSWERS)


def test_the_reader_knows_what_chat_asks_of_it() -> None:
    reader = Reader(LIMITS, {"n": "long"})
    with pytest.raises(Refused, match="'seed' is not one of the model's"):
        reader.check_params({"seed": 1})
