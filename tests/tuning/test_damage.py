"""A damaged or forged directory of a tuning ends in one line, and nothing outside of it is written."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from fedpisa.cli.main import main
from tests.tuning.plans import GRID, write

pytest.importorskip("optuna", reason="needs the extra tune")

VALUES = ("3", "[]", "{}", "null", '"x"', '{"a":', "", '{"index": -1, "worker": "../../x"}', "[" * 5000)
"""Contents of an entry that no tuning writes."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a complete tuning of two trials."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(["tune", str(write_plan(folder, [0.1, 0.3])), "--out", str(folder / "tuned")]) == 0
    return folder / "tuned"


def write_plan(folder: Path, rates: list[float]) -> Path:
    search = {"search": {"learning-rate": rates}, "tune": {"sampler": "grid", "trials": len(rates)}}
    return write(
        folder / "plan.toml", **{**GRID, **search, "variant": [{"name": "a", "algorithm": "fedsgd"}]}
    )


def tuned_again(directory: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Run the tuning in a directory, and return its code and the lines of errors."""
    capsys.readouterr()
    code = main(["tune", str(write_plan(folder, [0.1, 0.3])), "--out", str(directory)])
    return code, [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("table", ["trial_user_attributes", "study_user_attributes"])
def test_a_damaged_entry_of_the_database_is_one_line(
    table: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, value in enumerate(VALUES):
        directory = tmp_path / str(number)
        shutil.copytree(whole, directory)
        edit(directory, f"update {table} set value_json = ?", value)
        code, errors = tuned_again(directory, tmp_path, capsys)
        # Without its plan or its claims, the database is that of a tuning that has just begun.
        assert code == 2 or value in ("null", "{}"), value
        assert len(errors) == (code == 2)
        assert all("tune.db" in line or "are of another plan" in line for line in errors)


@pytest.mark.parametrize(
    ("command", "value"),
    [
        ("update trial_params set param_value = ?", "99"),
        ("update trial_params set distribution_json = ?", "{}"),
        ("delete from trial_params where param_name != ?", ""),
        ("update trials set state = ?", "x"),
        ("insert into study_user_attributes(study_id, key, value_json) values (1, 'extensions', ?)", "1"),
        ("insert into study_user_attributes(study_id, key, value_json) values (1, 'extensions', ?)", '"x"'),
        ("update trial_user_attributes set value_json = ? where key = 'end'", '{"state": "finished"}'),
        (
            "update trial_user_attributes set value_json = ? where key = 'end'",
            '{"state": "finished", "metric": "nan", "rounds": 1, "seconds": 1.0, "error": ""}',
        ),
    ],
)
def test_an_entry_of_another_kind_is_one_line(
    command: str, value: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "tuned")
    edit(tmp_path / "tuned", command, value)
    code, errors = tuned_again(tmp_path / "tuned", tmp_path, capsys)
    assert (code, len(errors)) == (2, 1)
    assert "tune.db is damaged" in errors[0]


@pytest.mark.parametrize("size", [0, 1, 100, 5000, None])
def test_a_damaged_database_is_one_line_or_begins_anew(
    size: int | None, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "tuned")
    content = (whole / "tune.db").read_bytes()
    noise = random.Random(0).randbytes(len(content))
    (tmp_path / "tuned" / "tune.db").write_bytes(noise if size is None else content[:size])
    code, errors = tuned_again(tmp_path / "tuned", tmp_path, capsys)
    assert len(errors) == (code == 2)
    assert code == (0 if size == 0 else 2)


@pytest.mark.parametrize("name", ["best", "best/a", "workers", "tune.db", ".lock"])
def test_no_link_is_followed(
    name: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A link in the directory once had files of the folder removed to which it led."""
    directory, outside = tmp_path / "tuned", tmp_path / "outside"
    shutil.copytree(whole, directory)
    outside.mkdir()
    (outside / "mine.toml").write_text("x = 1")
    place = directory / name
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    place.symlink_to(outside if place.suffix != ".db" else outside / "mine.toml")
    code, errors = tuned_again(directory, tmp_path, capsys)
    assert (code, len(errors)) == (2, 1)
    assert "is a symbolic link" in errors[0]
    assert [file.name for file in outside.iterdir()] == ["mine.toml"]
    assert (outside / "mine.toml").read_text() == "x = 1"


def edit(directory: Path, command: str, value: str) -> None:
    connection = sqlite3.connect(directory / "tune.db")
    with connection:
        connection.execute(command, (value,))
    connection.close()
