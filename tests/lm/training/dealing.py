"""Load models in shares and whole and compare them: `torchrun … dealing.py FOLDER PART,PART`.

A part is a folder in FOLDER, with what is made of it behind a colon. Every process writes what its
memory grew by while the model `large` was loaded to FOLDER/grown-RANK.json.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from infalign.lm.freezing import freeze
from infalign.lm.models import build_reward_model, load_policy, load_tokenizer, own_padding
from infalign.lm.training.lora import add_adapter
from infalign.lm.training.parallel import Trainable
from infalign.settings.params import Run

CPU = torch.device("cpu")


def with_adapter(folder: Path, device: torch.device) -> PreTrainedModel:
    """A frozen base with an adapter that is not nothing."""
    model = add_adapter(load_policy(folder, device, "bfloat16"), 4, 5)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data += 0.5
    return freeze(model)


def reward_of(folder: Path, device: torch.device) -> PreTrainedModel:
    """A reward model with a drawn head and a padding token of its own."""
    tokenizer = own_padding(load_tokenizer(folder))
    return build_reward_model(folder, tokenizer, device, 3, "bfloat16")


MADE: dict[str, Callable[[Path, torch.device], PreTrainedModel]] = {
    "policy": load_policy,
    "frozen": partial(load_policy, precision="bfloat16", frozen=True),
    "adapter": with_adapter,
    "reward": reward_of,
}


def tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights, tied ones by both names, buffers, and what modules keep beside them."""
    found = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    for path, module in model.named_modules():
        held = {k: v for k, v in vars(module).items() if isinstance(v, torch.Tensor)}
        found |= {f"{path}.{key}": value for key, value in held.items()}
    return found


def compare(name: str, shares: PreTrainedModel, right: PreTrainedModel) -> None:
    """Every tensor to the last bit; tied ones are one."""
    mine, other = tensors(shares), tensors(right)
    assert mine.keys() == other.keys(), (name, mine.keys() ^ other.keys())
    for key, tensor in mine.items():
        whole: Any = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        assert whole.dtype == other[key].dtype, (name, key)
        assert torch.equal(whole, other[key]), (name, key)
        assert tensor.requires_grad == other[key].requires_grad, (name, key)
    ties = [[len({id(t) for t in ts.values()})] for ts in (mine, other)]
    assert ties[0] == ties[1], name
    settings = [repr(getattr(model, "generation_config", None)) for model in (shares, right)]
    assert settings[0] == settings[1], name


def grown(work: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that the process had at its most while it worked, beyond what it had before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # begin the peak anew
    before, made = status("VmRSS"), work()
    return status("VmHWM") - before, made


def status(key: str) -> int:
    """Bytes, of the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def main(folder: Path, parts: list[str]) -> None:
    """Compare, then measure."""
    run = Run(processes=int(os.environ["WORLD_SIZE"]), sharding="fsdp2", device="cpu")
    for part in parts:
        name, _, what = part.partition(":")
        build = partial(MADE[what], folder / name)
        training, right = Trainable(build, run), build(CPU)
        compare(part, training.model, right)
        compare(part, training.plain(), right)
        if what == "frozen":
            compare(part, training.shared_out(build), right)
        else:
            compare(part, training.whole(), freeze(right))
    build = partial(load_policy, folder / "large")
    size, training = grown(lambda: Trainable(build, run))
    held = sum(p.to_local().nbytes for p in training.model.parameters())  # type: ignore[operator]
    (folder / f"grown-{training.ranks.rank}.json").write_text(json.dumps([size, held]))
    training.ranks.part()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","))
