"""The files in ``deploy/`` start existing commands with the options of ``fedpisa deploy``."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedpisa.apps.node import NODE_KEYS
from fedpisa.config.overrides import parse_overrides
from fedpisa.deployment.local import Deployment, which

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
HOME = "/home/fedpisa"
COMMANDS = {"superlink": "flower-superlink", "node": "flower-supernode"}


def compose(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / f"compose.{name}.yaml").read_text())
    return content


def unit(name: str) -> dict[str, str]:
    """Return the settings of a unit's section [Service], with continued lines joined."""
    text = (DEPLOY / "systemd" / f"fedpisa-{name}.service").read_text().replace("\\\n", " ")
    section = re.search(r"^\[Service\]\n(.*?)(?=^\[)", text, re.M | re.S)
    assert section
    lines = [line for line in section[1].splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def words(name: str, kind: str) -> list[str]:
    if kind == "systemd":
        return shlex.split(unit(name)["ExecStart"])
    command: list[str] = compose(name)["services"][name]["command"]
    return command


def options(command: list[str]) -> dict[str, str]:
    """Return a command's options with their values, which may follow ``=`` or a space."""
    found: dict[str, str] = {}
    for word in command[1:]:
        if word.startswith("--"):
            option, _, value = word.partition("=")
            found[option] = value
        else:
            found[list(found)[-1]] = word
    return found


@cache
def known(command: str) -> set[str]:
    """Return the options of one of Flower's commands."""
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "COLUMNS": "200"}
    said = subprocess.run(
        [which(command), "--help"], env=environment, capture_output=True, text=True, check=True, timeout=600
    )
    return set(re.findall(r"--[a-z][a-z-]+", said.stdout))


@pytest.mark.parametrize("kind", ["compose", "systemd"])
@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_are_those_of_fedpisa_deploy(name: str, kind: str, tmp_path: Path) -> None:
    command = words(name, kind)
    assert Path(command[0]).name == COMMANDS[name]
    given = options(command)
    assert set(given) <= known(COMMANDS[name])
    deployment = Deployment.prepare(tmp_path / "private", "fl.example.org:9092", [{}])
    own = deployment.superlink_command() if name == "superlink" else deployment.node_command(0, 9094)
    # A node that is alone on its machine uses Flower's default port.
    assert set(given) == set(options(own)) - ({"--port"} if name == "node" else set())
    assert "--insecure" not in given
    if name == "node":
        assert set(parse_overrides(given["--node-config"])) <= set(NODE_KEYS)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_container_keeps_is_its_own(name: str) -> None:
    """The image creates every folder that a volume keeps: otherwise the volume belongs to root."""
    content = compose(name)
    service = content["services"][name]
    mounts = dict(
        reversed(volume.rpartition(":")[::2]) for volume in service["volumes"] if "ro" not in volume[-3:]
    )
    assert list(content["services"]) == [name]
    assert set(mounts.values()) == set(content["volumes"])
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    made = re.search(r"^USER fedpisa\nWORKDIR (\S+)\n(?:#.*\n)*RUN mkdir (.+)$", dockerfile, re.M)
    assert made
    assert made[1] == HOME
    assert set(mounts) <= {f"{HOME}/{folder}" for folder in made[2].split()}
    kept = [value for value in options(words(name, "compose")).values() if HOME in value]
    assert kept
    assert all(folder in " ".join(kept) for folder in mounts)


def test_the_image_has_all_that_the_package_is_built_from() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    project = (ROOT / "pyproject.toml").read_text()
    assert let_in == {
        "fedpisa",
        "pyproject.toml",
        *re.findall(r'(?:readme = |license-files = \[)"(\S+?)"', project),
    }
    assert all((ROOT / name).exists() for name in let_in)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not there")
@pytest.mark.parametrize("name", COMMANDS)
def test_systemd_accepts_the_unit(name: str, tmp_path: Path) -> None:
    """The unit passes systemd's check, without the user and with another folder of commands.

    This machine has neither the user nor the folder.
    """
    text = (DEPLOY / "systemd" / f"fedpisa-{name}.service").read_text()
    file = tmp_path / f"fedpisa-{name}.service"
    file.write_text(
        text.replace("/opt/fedpisa/bin/flower", f"{Path(which('flwr')).parent}/flower").replace(
            "User=fedpisa\n", ""
        )
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False, timeout=600
    )
    said = [line for line in done.stderr.splitlines() if file.name in line]
    assert not said
