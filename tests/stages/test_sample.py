"""sample: shards, resumption, and what must not change a sample."""

import pyarrow.parquet as pq
import pytest

from infalign.errors import InputError
from infalign.files.tables import SAMPLES, read_table
from infalign.stages import sample


def test_every_prompt_has_its_samples(finished, smoke_tree):
    rows = read_table(finished / "results/sample/samples.parquet", SAMPLES).to_pylist()
    settings = smoke_tree["sample"]
    for objective in smoke_tree["run"]["objectives"]:
        for split in ("train", "test"):
            mine = [r for r in rows if r["objective"] == objective and r["split"] == split]
            k = settings[f"{split}_samples"]
            assert len(mine) == settings[f"{split}_prompts"] * k
            assert {r["sample_index"] for r in mine} == set(range(k))
    assert all(len(r["tokens"]) == r["n_tokens"] for r in rows)


def test_large_samples_continue_behind_the_evaluation_samples(finished, smoke_tree):
    rows = read_table(finished / "results/sample/large.parquet", SAMPLES).to_pylist()
    settings = smoke_tree["sample"]
    first, many = settings["test_samples"], settings["large_samples"]
    assert {r["sample_index"] for r in rows} == set(range(first, first + many))
    assert {r["split"] for r in rows} == {"test"}


def test_a_killed_run_resumes_without_resampling(finished, workspace, monkeypatch):
    made = workspace("sample")
    calls = []
    original = sample._sample

    def counted(shard, *rest):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(shard.name)
        return original(shard, *rest)

    monkeypatch.setattr(sample, "_sample", counted)
    with pytest.raises(KeyboardInterrupt):
        sample.run(made)
    done = list(calls)
    monkeypatch.setattr(
        sample, "_sample", lambda shard, *rest: calls.append(shard.name) or original(shard, *rest)
    )
    sample.run(made)
    assert len(calls) == len(set(calls)) > len(done) == 3
    for name in ("samples.parquet", "large.parquet", "metrics.json"):
        whole = finished / "results/sample" / name
        assert (made.out / "sample" / name).read_bytes() == whole.read_bytes(), name


def test_a_prompt_gets_the_same_samples_in_any_shard(finished, workspace, smoke_tree):
    made = workspace("sample")
    smaller = smoke_tree["sample"] | {"shard_responses": 8}
    params = made.params.model_copy(
        update={"sample": made.params.sample.model_copy(update=smaller)}
    )
    sample.run(type(made)(params, made.root, made.instance))
    for name in ("samples", "large"):
        first = pq.read_table(made.out / "sample" / f"{name}.parquet")
        second = pq.read_table(finished / "results/sample" / f"{name}.parquet")
        columns = ["prompt_id", "sample_index", "tokens", "response"]
        assert first.select(columns).equals(second.select(columns))


def test_fewer_prompts_than_asked_for_are_told_and_none_are_refused(workspace, capsys):
    made = workspace("sample")

    def told(**changes):
        params = made.params.model_copy(update=changes)
        other = type(made)(params, made.root, made.instance)
        sample._tell_missing(other, list(sample._shards(other)))
        return capsys.readouterr().out

    assert told() == ""
    more = made.params.sample.model_copy(update={"train_prompts": 61})
    assert "helpful has 60 train prompts, not sample.train_prompts = 61: all" in told(sample=more)
    nobody = made.params.run.model_copy(update={"objectives": ["nobody"]})
    with pytest.raises(InputError, match="has no train prompts of nobody"):
        told(run=nobody)
