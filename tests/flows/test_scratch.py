import subprocess, sys
import pytest
from tests.flows import test_readme
from tests.flows.conftest import contents, write_toy, Project
from tests.flows.test_readme import test_the_commands_do_what_the_pages_say
test_readme.RUN = tuple(r for r in test_readme.RUN if "python -m" not in r and "frontier" not in r) + (r"infalign data add .*",)
@pytest.fixture
def real(tmp_path, quiet):
    root = tmp_path / "toy"
    write_toy(root)
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=root, env=quiet, check=True)
    return Project(root, dict(quiet)), "", contents(root)
base = test_readme.place.__wrapped__ if hasattr(test_readme.place, "__wrapped__") else test_readme.place._get_wrapped_function()
@pytest.fixture
def place(real, tmp_path):
    p = base(real, tmp_path)
    shim = tmp_path / "bin" / "infalign"
    real_line = shim.read_text().splitlines()[1]
    shim.write_text("#!/bin/sh\ncase \"$1 $2\" in\n'run ') dvc status --quiet && echo 0 made, 0 restored;;\n'run --push') dvc push && echo files pushed;;\n*) " + real_line + ";;\nesac\n")
    return p
