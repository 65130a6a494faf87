"""Opening Hugging Face folders and hub names: safetensors, no remote code, adapters merged.

What libraries raise about a folder that cannot be read is one sentence here.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from infalign.errors import InputError
from infalign.lm.memory import ran_out


class Loaded(NamedTuple):
    """A model in float32, and its weights that were drawn because nothing was stored for them."""

    model: PreTrainedModel
    missing: list[str]


def load(kind: Any, name_or_path: str | Path, **options: Any) -> Any:
    """What `kind.from_pretrained` gives; every way in which that fails is an InputError."""
    try:
        return kind.from_pretrained(str(name_or_path), trust_remote_code=False, **options)
    except Exception as error:  # of safetensors, pickle, torch, peft, json and more
        if ran_out(error):
            raise
        raise InputError(_sentence(name_or_path, error)) from error


def load_config(name_or_path: str | Path, revision: str | None = None) -> PreTrainedConfig:
    """A model's config; of an adapter that of the model it belongs to."""
    base = base_of(name_or_path, revision)
    return load(AutoConfig, base or name_or_path, revision=None if base else revision)


def load_weights(
    kind: Any,
    name_or_path: str | Path,
    revision: str | None = None,
    *,
    empty: bool = False,
    **options: Any,
) -> Loaded:
    """A model of `kind`; an adapter's folder gives the model it belongs to with it merged.

    Args:
        empty: on the meta device, without reading its weights.
    """
    base = base_of(name_or_path, revision)
    if empty:
        options["device_map"] = "meta"
    model, info = load(
        kind,
        base or name_or_path,
        dtype=torch.float32,
        revision=None if base else revision,
        use_safetensors=True,
        output_loading_info=True,
        **options,
    )
    if empty:
        return Loaded(model, [])
    weights = {name for name, _ in model.named_parameters()}
    missing = sorted(weights & set(info["missing_keys"]))
    if base is None:
        return Loaded(model, missing)
    return _with_adapter(model, missing, name_or_path, revision)


def base_of(name_or_path: str | Path, revision: str | None = None) -> str | None:
    """The model that an adapter belongs to; None: it is no adapter."""
    found = find_adapter_config_file(str(name_or_path), revision=revision)
    if found is None:
        return None
    base = json.loads(Path(found).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise InputError(
            f"model {str(name_or_path)!r} is an adapter, and its adapter_config.json does not say "
            "of which model: name it there as base_model_name_or_path."
        )
    return str(base)


def check_weights(name_or_path: str | Path) -> None:
    """Raise where a local folder's weights are missing, a pickle or cut short, without loading."""
    base = base_of(name_or_path)
    if base is not None:
        check_weights(base)
    folder = Path(name_or_path)
    if not folder.is_dir():
        return
    stored = {file.name for file in folder.glob("*.safetensors")}
    try:
        for index in folder.glob("*.safetensors.index.json"):
            parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            if lost := sorted(set(parts) - stored):
                raise OSError(f"{lost[0]} is not there")
        if not stored:
            raise OSError("there is no *.safetensors")
        for name in sorted(stored):
            with safe_open(folder / name, framework="pt"):
                pass
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(_sentence(folder, error)) from error


def _with_adapter(
    model: PreTrainedModel, missing: list[str], name: str | Path, revision: str | None
) -> Loaded:
    try:
        import peft
    except ImportError:
        raise InputError(
            f"model {str(name)!r} is an adapter, which needs peft: pip install -c constraints.txt "
            "-e '.[lora]', or give the merged model."
        ) from None
    options = {"_raise_exceptions_for_missing_entries": False, "revision": revision}
    if cached_file(str(name), "adapter_model.safetensors", **options) is None:
        raise InputError(
            f"model {str(name)!r}: an adapter is read from adapter_model.safetensors alone, which "
            "is not there: save it once more with peft's save_pretrained."
        )
    try:
        config = peft.PeftConfig.from_pretrained(str(name), revision=revision)
        config.task_type = None  # a language model's adapter may sit in a reward model
        with warnings.catch_warnings():  # peft asks what transformers is about to rename
            warnings.simplefilter("ignore", FutureWarning)
            adapted = peft.PeftModel.from_pretrained(
                model, str(name), config=config, revision=revision
            )
            merged = adapted.merge_and_unload()
    except Exception as error:
        if ran_out(error):
            raise
        raise InputError(
            f"model {str(name)!r}: this adapter cannot be merged into "
            f"{base_of(name, revision)!r}: give the merged model ({_short(error)})."
        ) from error
    stored = [f".{module}." for module in config.modules_to_save or ()]
    left = [key for key in missing if not any(module in f".{key}" for module in stored)]
    return Loaded(merged.requires_grad_(True), left)


def _sentence(name: str | Path, error: Exception) -> str:
    """What is wrong with a model, and what to do."""
    folder = Path(name)
    pickled = [file.name for file in sorted(folder.glob("*.bin")) if "_model" in file.name]
    if pickled and not any(folder.glob("*.safetensors")):
        return (
            f"model {str(name)!r}: {pickled[0]} is a pickle, which can run code, and only "
            f"safetensors are read: if you trust it, {_conversion(folder)}."
        )
    if isinstance(error, SafetensorError):
        return (
            f"model {str(name)!r} cannot be loaded: its weights are damaged or incomplete: "
            f"download or copy it again ({_short(error)})."
        )
    return (
        f"model {str(name)!r} cannot be loaded: give a local Hugging Face folder with safetensors, "
        f"or a hub name while online ({_short(error)})."
    )


def _conversion(folder: Path) -> str:
    """How the pickled weights of a folder become safetensors."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    except (OSError, ValueError, LookupError, TypeError):
        return "load it where it was made and save it once more with save_pretrained"
    return (
        f'convert it once: python -c "from transformers import {kind} as M; '
        f"m = M.from_pretrained({str(folder)!r}, use_safetensors=False); "
        f'm.save_pretrained({str(folder)!r})"'
    )


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
