"""QLoRA: where it is refused. (bitsandbytes and CUDA are not here: nothing is quantised.)"""

import sys

import pytest
import torch
from smoke import merged

from infalign.errors import InputError
from infalign.lm.training.quantising import check_quantising
from infalign.settings.params import Params, check_params

SECTIONS = ("sft", "reward", "align")
CUDA = {"run": {"device": "cuda"}}


def asked(smoke_tree, section: str, change) -> Params:
    bits = {section: {"lora_rank": 4, "lora_bits": 4}}
    return check_params(merged(merged(merged(smoke_tree, CUDA), bits), change), "params.yaml")


@pytest.mark.parametrize("section", SECTIONS)
def test_what_the_machine_lacks(smoke_tree, monkeypatch, section):
    params = asked(smoke_tree, section, {})
    with pytest.raises(InputError, match=rf"^{section}\.lora_bits = 4 needs CUDA, and this stage"):
        check_quantising(params, torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"bitsandbytes, which is not installed: .*\.\[qlora\]"):
        check_quantising(params, torch.device("cuda"))
    check_quantising(check_params(smoke_tree, "params.yaml"), torch.device("cpu"))


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"run": {"device": "cpu"}}, "needs CUDA, and run.device = cpu"),
        ({"run": {"sharding": "fsdp2", "processes": 2}}, "cannot be dealt out"),
    ],
)
def test_what_does_not_go_with_it(smoke_tree, section, change, words):
    with pytest.raises(InputError) as error:
        asked(smoke_tree, section, change)
    assert f"{section}.lora_bits = 4 {words}" in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"align": {"lora_rank": None}}, "align.lora_rank = null trains all weights"),
        ({"align": {"lora_bits": 8}}, "align.lora_bits = 8"),
        ({"generation": {"engine": "vllm", "start": True}}, "draw from the base as it is"),
        ({"run": {"variants": ["ctrl", "offline"]}}, "run.variants names 'offline'"),
    ],
)
def test_what_align_cannot_do_over_a_quantised_base(smoke_tree, change, words):
    with pytest.raises(InputError) as error:
        asked(smoke_tree, "align", change)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
