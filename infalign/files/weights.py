"""Which files a model's name stands for: none (`tiny`, `sft`), a local folder, a commit on the hub.

`model.name_or_path` and `reward.name_or_path` may be any of the three. A folder's files are inputs
of the stages that load them, under a key of its own (`model.folder`), because dvc.yaml cannot ask
whether a name is a folder; of the hub, `model.revision` says which commit. `pinned` gives what
these two have to be, and no stage loads a model for which they are something else.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Protocol

from infalign.errors import InputError
from infalign.settings.kinds import DEFAULTS, fits

NONE = "models/none"  # in `folder` where no local folder is read: DVC wants it to be there
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_TOKENIZER = "tokenizer_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")  # may run code when read
BUILT = {"model": "tiny", "reward": "sft"}  # by section: what is made here, from no other files


class Source(Protocol):
    """A section of params.yaml that names a model."""

    @property
    def name_or_path(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def folder(self) -> str: ...


def folders(source: Source) -> tuple[str, ...]:
    """The local folder that a stage reads, if any."""
    return () if source.folder == NONE else (source.folder,)


def pinned(section: str, name: str, revision: str | None, root: Path) -> dict[str, str | None]:
    """What `folder` and `revision` have to be for a name.

    Args:
        section: `model` or `reward`.
        revision: the commit that is wanted of the hub; None: the present one of its main branch.
    """
    if name == BUILT[section]:
        return {"folder": NONE, "revision": None}
    if (root / name).is_dir():
        return {"folder": name, "revision": None}
    return {"folder": NONE, "revision": revision or present_commit(name)}


def check_source(section: str, source: Source, root: Path) -> None:
    """Raise where `folder` or `revision` is not what the name stands for."""
    name = source.name_or_path
    for key, value in pinned(section, name, source.revision, root).items():
        given = getattr(source, key)
        if given != value:
            wanted = "null" if value is None else repr(value)
            raise InputError(
                f"params.yaml: {section}.{key} = {'null' if given is None else repr(given)} does "
                f"not fit {section}.name_or_path = {name!r}: set it to {wanted}, or let "
                "`infalign run` do so."
            )


def kind_of(name: str, revision: str | None, root: Path) -> str | None:
    """Which kind of model.kind a name is: by its tokenizer's files; None: they cannot be had."""
    if name == BUILT["model"]:
        return "scratch"
    folder = root / name
    if not folder.is_dir():
        try:
            folder = snapshot(name, [*_TEMPLATES, _TOKENIZER], revision)
        except (OSError, ValueError):
            return None
    if any((folder / template).is_file() for template in _TEMPLATES):
        return "instruct"
    try:
        tree = json.loads((folder / _TOKENIZER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return "base"
    return "instruct" if isinstance(tree, dict) and tree.get("chat_template") else "base"


def check_kind(source: Source, kind: str, root: Path) -> None:
    """Raise where `model.kind` is not what the name stands for."""
    found = kind_of(source.name_or_path, source.revision, root)
    if found is not None and not fits(kind, found):
        raise InputError(
            f"params.yaml: model.kind = {kind!r}, and its defaults, are not meant for "
            f"model.name_or_path = {source.name_or_path!r}, which is {found!r}: set it to that and "
            f"{', '.join(DEFAULTS[found])} to what suits it, or let `infalign run` do so."
        )


def present_commit(name: str) -> str:
    """The commit of a hub model's main branch; without network: as the local cache has it."""
    try:
        return snapshot(name, ["config.json"], None).name
    except (OSError, ValueError) as error:  # what the hub's own errors derive from
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"model {name!r} cannot be loaded: it is no local folder, and neither the hub nor its "
            f"local cache has it: correct the name, or go online ({reason})."
        ) from None


def snapshot(name: str, files: list[str], revision: str | None) -> Path:
    """The local copy of some of a hub model's files."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, allow_patterns=files))
