"""Deployments: keys and certificates, running processes, and printed commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from fedpisa.cli.deploy import instructions
from fedpisa.deployment import processes
from fedpisa.deployment.certificates import CA, CERTIFICATE, KEY
from fedpisa.deployment.local import Deployment, free_port, write_app

NODES = [{"partition-id": node, "num-partitions": 2} for node in range(2)]


@pytest.fixture
def prepared(tmp_path: Path) -> Deployment:
    return Deployment.prepare(tmp_path / "private", "fl.example.org:9092", NODES)


def test_the_authority_signs_the_certificate_for_the_address(prepared: Deployment) -> None:
    ca, certificate = (
        x509.load_pem_x509_certificate((prepared.folder / name).read_bytes()) for name in (CA, CERTIFICATE)
    )
    certificate.verify_directly_issued_by(ca)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "fl.example.org" in names.get_values_for_type(x509.DNSName)
    key = load_pem_private_key((prepared.folder / KEY).read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == certificate.public_key()


def test_everything_private_is_private(prepared: Deployment) -> None:
    assert prepared.folder.stat().st_mode & 0o777 == 0o700
    for name in (KEY, "node-0.key", "node-1.key"):
        assert (prepared.folder / name).stat().st_mode & 0o777 == 0o600
    private, public = (prepared.folder / "node-0.key"), (prepared.folder / "node-0.key.pub")
    assert load_ssh_private_key(private.read_bytes(), None).public_key() == load_ssh_public_key(
        public.read_bytes()
    )
    assert private.read_bytes() != (prepared.folder / "node-1.key").read_bytes()


def test_a_deployment_is_read_as_it_was_written(prepared: Deployment) -> None:
    assert Deployment.read(prepared.folder) == prepared
    with pytest.raises(ValueError, match="exists: name another"):
        Deployment.prepare(prepared.folder, "127.0.0.1:1", NODES)
    with pytest.raises(ValueError, match="start one with fedpisa deploy up"):
        Deployment.read(prepared.folder / "nothing")
    with pytest.raises(ValueError, match="not host:port"):
        Deployment.prepare(prepared.folder / "other", "fl.example.org", NODES)


def test_the_printed_commands_are_those_that_run(prepared: Deployment) -> None:
    text = "\n".join(instructions(prepared))
    assert "flower-superlink --ssl-ca-certfile ca.crt" in text
    assert "--enable-supernode-auth" in text
    assert "--superlink fl.example.org:9092 --auth-supernode-private-key node-1.key" in text
    assert "partition-id=1 num-partitions=2" in text
    assert text.count("flwr supernode register") == 2
    assert "--insecure" not in text


def test_a_command_that_reaches_nobody_is_an_error(tmp_path: Path) -> None:
    """An unreachable SuperLink is an error, although Flower's commands exit with 0 if they print JSON."""
    deployment = Deployment.prepare(tmp_path / "private", f"127.0.0.1:{free_port()}", NODES)
    with pytest.raises(ValueError, match=r"flwr supernode list failed: .*unavailable"):
        deployment.known_nodes()


def test_an_app_that_flower_accepts(tmp_path: Path) -> None:
    from flwr.cli.build import build_fab_from_disk
    from flwr.common.config import get_fused_config_from_fab
    from flwr.supercore.run import Run

    app = write_app(
        tmp_path / "app", {"algorithm": "sisa", "sigma": 0.5, "bias": False, "text": "a 'b' \"c\""}
    )
    run = Run.create_empty(1)
    config = get_fused_config_from_fab(build_fab_from_disk(app), run)
    assert config == {"algorithm": "sisa", "sigma": 0.5, "bias": False, "text": "a 'b' \"c\""}


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="processes tell their environment on Linux alone"
)
def test_down_ends_also_what_a_killed_process_left(tmp_path: Path) -> None:
    process = processes.start("parent", [sys.executable, "-c", PARENT], tmp_path, os.environ, tmp_path)
    log, deadline = tmp_path / "parent.log", time.monotonic() + 60
    while not log.read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child = int(log.read_text())
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)
    assert not process.alive
    os.kill(child, 0)
    assert processes.end(tmp_path, [process]) == 1
    assert processes.started_at(child) is None
    assert processes.end(tmp_path, [process]) == 0


def test_a_process_is_known_by_its_start_too(tmp_path: Path) -> None:
    """A process with a reused number is not ended: the start time must match too."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        assert not processes.Process("old", other.pid, "long ago").alive
        assert processes.end(tmp_path, [processes.Process("old", other.pid, "long ago")]) == 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
