"""deploy/: versions and extras that the project has, and services that fit together."""

import itertools
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from smoke import ROOT

DEPLOY = ROOT / "deploy"


def test_images_have_what_the_project_names():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = re.search(r"'\.\[(.*)\]'", (DEPLOY / "Dockerfile").read_text())[1].split(",")
    assert set(asked) <= set(extras["optional-dependencies"])
    version = re.search(r"^VLLM := vllm==(\S+)$", (ROOT / "Makefile").read_text(), re.M)[1]
    assert f"FROM vllm/vllm-openai:v{version}\n" in (DEPLOY / "engine.Dockerfile").read_text()


def test_services_name_each_other_and_what_is_declared():
    tree = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = tree["services"]
    text = yaml.safe_dump(services)
    assert set(re.findall(r"@(\w+)/", text) + re.findall(r"http://(\w+):", text)) <= set(services)
    for service in services.values():
        assert set(service.get("depends_on", [])) <= set(services)
        for place in service.get("volumes", []):
            source = place.split(":")[0]
            assert source.startswith("$") or source in tree["volumes"]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "nobody else reaches a server without a login"
        for config in service.get("configs", []):
            assert config["source"] in tree["configs"]


@pytest.mark.parametrize("service", ["prefect", "mlflow", "worker"])
def test_commands_of_the_services_are_known(service):
    """Their options are those of the installed Prefect and MLflow."""
    words = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"][service]["entrypoint"]
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    command = [sys.executable, "-m", *itertools.takewhile(lambda word: word[0] != "-", words)]
    told = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert options <= set(re.findall(r"--[a-z-]+", told))
