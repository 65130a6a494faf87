"""`infalign data add`: a folder, the hub's cache, and every way to get it wrong."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.project.datasets import default_name
from tests.data.thirty import FORMS, thirty, write_rows
from tests.flows.conftest import Project, write_toy
from tests.flows.project.hub import COMMIT, hub

REVISION = "0123456789abcdef0123456789abcdef01234567"


def write_hh(folder: Path, subsets: tuple[str, ...] = ("helpful-base", "harmless-base")) -> Path:
    """A little data in the HH format, as the hub has it."""
    for subset in subsets:
        (folder / subset).mkdir(parents=True)
        for split in ("train", "test"):
            with gzip.open(folder / subset / f"{split}.jsonl.gz", "wt") as stream:
                for number in range(8):
                    prompt = f"\n\nHuman: {split} {number}?\n\nAssistant:"
                    row = {"chosen": f"{prompt} yes {number}", "rejected": f"{prompt} no"}
                    stream.write(json.dumps(row) + "\n")
    return folder


def write_hub_cache(home: Path, repository: str) -> None:
    """The cache that a download would have left."""
    repo = home / "hub" / f"datasets--{repository.replace('/', '--')}"
    snapshot = write_hh(repo / "snapshots" / REVISION)
    (repo / "blobs").mkdir()
    for number, file in enumerate(sorted(snapshot.rglob("*.gz"))):
        shutil.move(file, repo / "blobs" / f"{number}")
        file.symlink_to(f"../../../blobs/{number}")
    (repo / "snapshots" / REVISION / "README.md").write_text("not data")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(REVISION)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, quiet: dict[str, str]) -> Project:
    """A toy project; nothing is run in it."""
    root = tmp_path_factory.mktemp("data") / "project"
    write_toy(root)
    return Project(root, dict(quiet))


def test_a_folder_becomes_a_version_and_again_is_the_same(bare: Project, tmp_path: Path) -> None:
    source = write_hh(tmp_path / "mine")
    (source / "notes.txt").write_text("not data")
    status, output = bare.inside("data", "add", str(source))
    assert status == 0, output
    assert "infalign run --set data.path=data/raw/mine" in output
    versions = (bare.root / "data" / "raw" / "mine.dvc").read_text()
    status, output = bare.inside("data", "add", str(source))
    assert status == 0, output
    assert (bare.root / "data" / "raw" / "mine.dvc").read_text() == versions
    there = {p.name for p in (bare.root / "data" / "raw" / "mine").rglob("*") if p.is_file()}
    assert there == {"train.jsonl.gz", "test.jsonl.gz"}
    assert not list((bare.root / "data" / "raw").glob(".*.new"))


def test_the_hub_through_its_own_library_from_a_cache(bare: Project, tmp_path: Path) -> None:
    write_hub_cache(tmp_path, "Anthropic/hh-rlhf")
    for source, name in (
        ("hub:Anthropic/hh-rlhf", "hh-rlhf"),
        (f"hub:Anthropic/hh-rlhf@{REVISION}", "pinned"),
    ):
        status, output = bare.run(
            "data", "add", source, "--name", name, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1"
        )
        assert status == 0, output
        folder = bare.root / "data" / "raw" / name
        assert {p.relative_to(folder).as_posix() for p in folder.rglob("*.gz")} == {
            f"{subset}/{split}.jsonl.gz"
            for subset in ("helpful-base", "harmless-base")
            for split in ("train", "test")
        }
        assert not any(path.is_symlink() for path in folder.rglob("*"))


def _truncate(folder: Path) -> None:
    file = folder / "helpful-base" / "train.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-20])


def _not_json(folder: Path) -> None:
    with gzip.open(folder / "helpful-base" / "train.jsonl.gz", "wt") as stream:
        stream.write("hello\n")


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("arguments", "spoil", "words"),
    [
        (["{source}"], _truncate, "is a truncated gzip file"),
        (["{source}"], _not_json, "is not JSON"),
        (["{source}"], _empty, "has no file of data"),
        (["{source}/nowhere"], None, "is not a folder or a file"),
        (["{source}", "--name", "../up"], None, "cannot name a folder"),
        (["{source}", "--name", ".hidden"], None, "cannot name a folder"),
        (["hub:Anthropic/not-there"], None, "is not in the local cache and the hub cannot be"),
        (["hub:no-owner"], None, "write OWNER/NAME"),
        (["Anthropic/not-there"], None, "is not in the local cache and the hub cannot be"),
        (["{source}", "--split", "dev"], None, "has no split ['dev'] (it has the splits"),
        (["{source}", "--column", "x=y"], None, "write ROLE=NAME"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    bare: Project,
    tmp_path: Path,
    arguments: list[str],
    spoil: Callable[[Path], None] | None,
    words: str,
) -> None:
    source = write_hh(tmp_path / "bad")
    if spoil is not None:
        spoil(source)
    given = [text.replace("{source}", str(source)) for text in arguments]
    # The hub's library reads its home once a process.
    command = bare.run if given[0].startswith("hub:") else bare.inside
    status, output = command(
        "data", "add", *given, HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1"
    )
    assert status == 2, output
    assert words in output
    assert len(output.strip().splitlines()) == 1
    assert ".new" not in output, "a folder that is gone"
    if spoil in (_truncate, _not_json):
        assert f"{source}/helpful-base/train.jsonl.gz" in output
    raw = bare.root / "data" / "raw"
    assert not raw.exists() or not [p for p in raw.iterdir() if "bad" in p.name]


def test_a_link_below_data_raw_is_refused(bare: Project, tmp_path: Path) -> None:
    source = write_hh(tmp_path / "linked")
    (bare.root / "data" / "raw").mkdir(parents=True, exist_ok=True)
    (bare.root / "data" / "raw" / "linked").symlink_to(tmp_path)
    status, output = bare.inside("data", "add", str(source))
    assert status == 2, output
    assert "is a link" in output


def _subset(source: Path, elsewhere: Path) -> Path:
    shutil.move(source / "helpful-base", elsewhere)
    (source / "helpful-base").symlink_to(elsewhere)
    return source / "helpful-base"


def _file(source: Path, elsewhere: Path) -> Path:
    file = source / "helpful-base" / "train.jsonl.gz"
    shutil.move(file, elsewhere)
    file.symlink_to(elsewhere)
    return file


def _link_of_link(source: Path, elsewhere: Path) -> Path:
    (source / "more").symlink_to(elsewhere.parent)
    shutil.move(source / "helpful-base", elsewhere)
    (source / "helpful-base").symlink_to(f"more/{elsewhere.name}")
    return source / "helpful-base"


def _nothing(source: Path, elsewhere: Path) -> Path:
    (source / "harmless-base" / "test.jsonl.gz").unlink()
    (source / "harmless-base" / "test.jsonl.gz").symlink_to(elsewhere)
    return source / "harmless-base" / "test.jsonl.gz"


def _circle(source: Path, elsewhere: Path) -> Path:
    assert not elsewhere.exists()
    (source / "harmless-base" / "train.jsonl").symlink_to("train.jsonl")
    return source / "harmless-base" / "train.jsonl"


@pytest.mark.parametrize("link", [_subset, _file, _link_of_link, _nothing, _circle])
def test_a_link_out_of_the_source_is_refused_by_its_name(
    bare: Project, tmp_path: Path, link: Callable[[Path, Path], Path]
) -> None:
    source = write_hh(tmp_path / "outgoing")
    name = link(source, tmp_path / "elsewhere")
    status, output = bare.inside("data", "add", str(source))
    assert status == 2, output
    assert f"{name} is a link" in output
    assert len(output.strip().splitlines()) == 1
    assert not (bare.root / "data" / "raw" / "outgoing").exists()


def test_a_link_inside_the_source_becomes_a_file(bare: Project, tmp_path: Path) -> None:
    source = write_hh(tmp_path / "inner", ("helpful-base",))
    (source / "same").symlink_to("helpful-base")
    (tmp_path / "door").symlink_to(source)
    status, output = bare.inside("data", "add", str(tmp_path / "door"), "--name", "inner")
    assert status == 0, output
    copied = bare.root / "data" / "raw" / "inner" / "same" / "train.jsonl.gz"
    assert copied.read_bytes() == (source / "helpful-base" / "train.jsonl.gz").read_bytes()
    assert not copied.parent.is_symlink()


def test_the_bounds_of_params_hold(bare: Project, tmp_path: Path) -> None:
    source = write_hh(tmp_path / "large")
    file = bare.root / "params.yaml"
    before = file.read_text()
    try:
        file.write_text(before.replace("file_bytes: 20000000000", "file_bytes: 300"))
        status, output = bare.inside("data", "add", str(source))
    finally:
        file.write_text(before)
    assert status == 2, output
    assert "test.jsonl.gz holds more than data.file_bytes = 300 bytes" in output or (
        "train.jsonl.gz holds more than data.file_bytes = 300 bytes" in output
    )


def test_names() -> None:
    assert default_name("hub:Anthropic/hh-rlhf@main") == "hh-rlhf"
    assert default_name("/data/mine/") == "mine"


CARD = """---
configs:
- config_name: short
  data_files:
  - split: train
    path: "parts/s-train-*"
  - split: test
    path: "parts/s-test-*"
---
Words about it.
"""


def test_the_hub_over_http_with_a_split_a_configuration_and_a_revision(
    bare: Project, tmp_path: Path
) -> None:
    repository = tmp_path / "somebody" / "preferences"
    rows = [FORMS["ultrafeedback"](pair) for pair in thirty()]
    for name in ("train_prefs", "test_prefs", "train_sft"):
        write_rows(repository / "data" / f"{name}-00000-of-00001.parquet", rows)
    write_rows(repository / "parts" / "s-train-0.jsonl", rows[:20])
    write_rows(repository / "parts" / "s-test-0.jsonl.gz", rows[20:])
    (repository / "README.md").write_text(CARD)

    def add(name: str, *arguments: str, **environment: str) -> tuple[int, str]:
        online = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / name), "HF_HUB_OFFLINE": "0"}
        return bare.run(
            "data", "add", "somebody/preferences", "--name", name, *arguments,
            **(online | environment),
        )  # fmt: skip

    with hub(tmp_path) as (address, asked):
        status, output = add("prefs", "--split", "train_prefs", "--split", "test_prefs")
        assert status == 0, output
        assert "preference pairs, conversations, 30 rows" in output
        assert "objectives: {NAME: {data: data/raw/prefs}}" in output
        folder = bare.root / "data" / "raw" / "prefs"
        assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == [
            "source.json",
            "test_prefs-00000-of-00001.parquet",
            "train_prefs-00000-of-00001.parquet",
        ]
        assert json.loads((folder / "source.json").read_text()) == {
            "repository": "somebody/preferences",
            "revision": COMMIT,
            "config": None,
            "splits": ["train_prefs", "test_prefs"],
        }
        assert not any("train_sft" in path for path in asked), "more was fetched than is wanted"
        status, output = add("tag", "--config", "short", "--revision", "v1")
        assert status == 0, output
        there = {p.name for p in (bare.root / "data" / "raw" / "tag").rglob("s-*")}
        assert there == {"s-train-0.jsonl", "s-test-0.jsonl.gz"}
        for arguments, words in (
            (("--split", "dev"), "has no split ['dev'] (it has the splits"),
            (("--revision", "v9"), "somebody/preferences at v9"),
        ):
            status, output = add("none", *arguments)
            assert status == 2, output
            assert words in output
            assert len(output.strip().splitlines()) == 1
    status, output = add("later")
    assert status == 2, output
    assert "the hub cannot be reached" in output
    assert len(output.strip().splitlines()) == 1


def test_show_says_what_it_sees_and_changes_nothing(bare: Project, tmp_path: Path) -> None:
    rows = [{"instruction": f"q{n}", "good": "a", "bad": "b" if n else "a"} for n in range(20)]
    path = write_rows(tmp_path / "mine.json.zst", rows)
    before = sorted(bare.root.rglob("*"))
    status, output = bare.run("data", "show", str(path))
    assert status == 2, output
    assert len(output.strip().splitlines()) == 1
    for words in (f"{path}: no preference pairs", "instruction (text)", "columns: {prompt:"):
        assert words in output
    columns = ("prompt=instruction", "chosen=good", "rejected=bad")
    options = [word for column in columns for word in ("--column", column)]
    status, output = bare.run("data", "show", str(path), *options)
    assert status == 0, output
    for words in (
        "mine.json.zst: preference pairs, a prompt and two texts, 20 rows",
        "dropped: 1 for identical_pair",
        "turns of a prompt: user (19)",
        "columns: {prompt: instruction, chosen: good, rejected: bad}",
        "  rejected: b",
    ):
        assert words in output
    assert sorted(bare.root.rglob("*")) == before
