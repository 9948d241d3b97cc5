"""The README's commands work one after the other in an empty folder, with the files that it shows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fedpisa.config.run import load_config
from fedpisa.studies.study import read_study
from fedpisa.tuning.plan import read_plan

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = r"(?:<!-- ci: ([\w ]+) -->\n)?^```(bash|console|toml)\n(.*?)^```$"
BLOCKS = [(kind, job, text) for job, kind, text in re.findall(BLOCK, README, re.M | re.S)]
COMMANDS = [text for kind, job, text in BLOCKS if kind != "toml" and not job]


def files() -> dict[str, str]:
    """Return the files that the README shows; a file's block starts with its name."""
    return {text.split()[1]: text for kind, _, text in BLOCKS if kind == "toml" and text.startswith("# ")}


def write_files(folder: Path) -> None:
    for name, text in files().items():
        (folder / name).write_text(text)


def test_every_block_of_commands_is_run() -> None:
    """Every block is run by the test below or, if it installs, tests or deploys, by a job of .ci/run."""
    jobs = [job for kind, job, _ in BLOCKS if kind != "toml" and job]
    script = (ROOT / ".ci" / "run").read_text()
    assert jobs == ["main job", "tests", "deployment"]
    assert all(f'"{job}"' in script for job in jobs)
    assert len(COMMANDS) >= 6


def test_files_are_shown_before_they_are_named() -> None:
    for command in COMMANDS:
        for name in re.findall(r"(?<![\w/])[\w-]+\.toml", command):
            assert 0 <= README.find(f"# {name}\n") < README.find(command), name


def test_the_files_are_what_they_are_said_to_be(tmp_path: Path) -> None:
    write_files(tmp_path)
    assert load_config(tmp_path / "sisa.toml").algorithm == "sisa"
    assert len(read_study(tmp_path / "digits.toml").runs()) == 45
    pytest.importorskip("optuna")
    shown, kept = (
        read_plan(tmp_path / "tune_digits.toml"),
        read_plan(ROOT / "experiments" / "tune_digits.toml"),
    )
    assert (shown.settings, shown.subjects) == (kept.settings, kept.subjects)


def test_nothing_is_installed_by_a_name_that_is_on_no_index() -> None:
    """No command says ``pip install fedpisa``, because anyone may register this name on an index."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "fedpisa").rglob("*.py")]
    named = [
        page.name for page in pages if re.search(r"pip install (-\S+ )*'?fedpisa\b(?!\[)", page.read_text())
    ]
    assert named == []


@pytest.mark.e2e
def test_the_commands_work_in_an_empty_folder(tmp_path: Path) -> None:
    for extra in ("optuna", "pyarrow"):
        pytest.importorskip(extra)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "fedpisa"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m fedpisa "$@"\n')
    command.chmod(0o755)
    folder = tmp_path / "empty"
    folder.mkdir()
    variables = {key: value for key, value in os.environ.items() if key != "FEDPISA_DATA"}
    variables |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    write_files(folder)
    study = folder / "tune_digits.toml"
    assert "trials = 20 " in study.read_text()
    study.write_text(study.read_text().replace("trials = 20 ", "trials = 2 "))  # 20 take five minutes
    for text in COMMANDS:
        words = ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    for made in (
        "curves.pdf",
        "split.png",
        "report.html",
        "results/sisa/run.json",
        "studies/tuned/study.toml",
    ):
        assert (folder / made).stat().st_size > 0
