"""A damaged file of a run causes a one-line error or a warning with its name; other runs continue."""

from __future__ import annotations

import json
import random
import shutil
import zlib
from pathlib import Path

import pytest
import tomli_w
from matplotlib.figure import Figure

from fedpisa.cli.main import main
from fedpisa.report import write_report
from fedpisa.report.runs import collect
from fedpisa.runs.results import load_result
from fedpisa.runs.runner import run
from fedpisa.studies.comparison import compare
from fedpisa.studies.study import load_study
from tests.damage import DAMAGES, files_of
from tests.runs.interrupted import assert_same, cut_short, forget_digests

KEYS = {
    "algorithm": "fedavg", "model": "logistic", "num-clients": 3, "num-server-rounds": 4, "per-client": True,
    "checkpoint-every": 2, "eval-every": 2,
}  # fmt: skip
STUDY = {"seeds": [0, 1], "base": {key: value for key, value in KEYS.items() if key != "per-client"}}
NAMES = (
    "config.toml",
    "run.json",
    "metrics.jsonl",
    "partition.npz",
    "model.safetensors",
    "checkpoint",
    "clients",
)
CHECKED = ("metrics.jsonl", "partition.npz", "model.safetensors")
"""Files with digests that `load_result` reads; a configuration with another digest is a warning."""
RESUMED = ("missing", "a directory", "a flipped bit", "another type")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished run, a run without digests, an unfinished run, and a study."""
    folder = tmp_path_factory.mktemp("whole")
    run(KEYS, folder / "finished")
    shutil.copytree(folder / "finished", folder / "old")
    forget_digests(folder / "old")
    cut_short(KEYS, folder / "unfinished", 3)
    compare(write_study(folder), folder / "study")
    return folder


def write_study(folder: Path) -> Path:
    (folder / "study.toml").write_text(tomli_w.dumps(STUDY))
    return folder / "study.toml"


def copy_of(original: Path, place: Path, name: str, damage: str) -> tuple[Path, Path, bool]:
    """Copy a run and damage one file; return the copy, the file, and whether the file has changed.

    Parameters
    ----------
    original, place
        The run, and its copy.
    name
        The beginning of the file's path.
    damage
        One of `DAMAGES`.
    """
    shutil.copytree(original, place)
    file = next(file for file in files_of(place) if str(file.relative_to(place)).startswith(name))
    DAMAGES[damage](file, random.Random(zlib.crc32(f"{name} {damage}".encode())))
    before = (original / file.relative_to(place)).read_bytes()
    return place, file, not file.is_file() or file.read_bytes() != before


def require_line(error: ValueError, *names: str) -> None:
    """Check that an error has one line with the name of a file."""
    assert "\n" not in str(error)
    assert any(name in str(error) for name in names)
    assert len(str(error)) < 1000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["finished", "old", "unfinished"])
def test_a_result_with_a_damaged_file(
    kind: str, name: str, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file with a digest is never read if its content has changed."""
    for damage in DAMAGES:
        caplog.clear()
        directory, file, is_changed = copy_of(whole / kind, tmp_path / damage, name, damage)
        seen = kind != "old" and is_changed
        try:
            result = load_result(directory)
        except ValueError as error:
            require_line(error, file.name)
            continue
        assert not (seen and name in CHECKED)
        assert file.name in caplog.text or name != "config.toml" or not seen
        result.plot(ax=Figure().subplots())
        assert "status" in repr(result) + result._repr_html_()
        try:
            result.clients.mean()
        except ValueError as error:
            require_line(error, file.name, "per-client = false")
        else:
            assert not (seen and name == "clients")


@pytest.mark.parametrize("kind", ["finished", "old", "unfinished"])
def test_a_report_names_the_damaged_runs_and_has_the_others(kind: str, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "finished", tmp_path / "runs" / "good")
    for name in NAMES:
        for damage in DAMAGES:
            copy_of(whole / kind, tmp_path / "runs" / f"{name} {damage}", name, damage)
    found = collect([tmp_path / "runs"])
    assert "good" in [run.directory.name for run in found.runs]
    assert len(found.unreadable) > 30
    assert all(reason and "\n" not in reason for reason in found.unreadable.values())
    written = write_report([tmp_path / "runs"], tmp_path / "report.html")
    assert "run.json empty" in written.page.read_text()


@pytest.mark.parametrize("damage", RESUMED)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["finished", "old", "unfinished"])
def test_a_run_resumes_or_says_which_file_is_damaged(
    kind: str, name: str, damage: str, whole: Path, tmp_path: Path
) -> None:
    directory, file, _ = copy_of(whole / kind, tmp_path / "run", name, damage)
    try:
        resumed = run({"num-server-rounds": 5}, resume=directory)
    except ValueError as error:
        require_line(error, file.name, str(directory), "another configuration")
    else:
        assert [row["round"] for row in resumed.rows] == [*range(6)]
        assert load_result(directory).status == "finished"


@pytest.mark.parametrize("damage", ["missing", "a directory", "half"])
@pytest.mark.parametrize("name", NAMES)
def test_the_commands_end_in_one_line(
    name: str,
    damage: str,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    directory, file, _ = copy_of(whole / "finished", tmp_path / "run", name, damage)
    for words in (
        ["plot", str(directory), "--out", "curves.png"],
        ["report", str(directory)],
        ["run", "--resume", str(directory)],
    ):
        code = main(words)
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == (code != 0)
        assert not lines or file.name in lines[0] or str(directory) in lines[0]


@pytest.mark.parametrize("damage", ["missing", "a flipped bit", "deep JSON"])
@pytest.mark.parametrize("name", NAMES[:-2])
def test_a_study_goes_on_with_the_other_runs(
    name: str, damage: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole / "study", tmp_path / "study")
    first = tmp_path / "study" / "runs" / "base" / "all"
    shutil.rmtree(first)
    _, file, _ = copy_of(whole / "study" / "runs" / "base" / "all" / "seed-0", first / "seed-0", name, damage)
    code = main(["compare", str(write_study(tmp_path)), "--out", str(tmp_path / "study")])
    errors = capsys.readouterr().err
    assert load_result(first / "seed-1").status == "finished"
    assert 1 in [one.seed for one in load_study(tmp_path / "study")]
    assert code == 0 or file.name in errors


def test_metrics_that_changed_before_the_checkpoint_are_not_kept(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A changed digit in an early round is found: the checkpoint has a digest of the file up to its round."""
    directory = tmp_path / "run"
    shutil.copytree(whole / "unfinished", directory)
    content = (directory / "metrics.jsonl").read_text()
    begin = content.index("0.")
    (directory / "metrics.jsonl").write_text(content[: begin + 2] + "0" + content[begin + 3 :])
    run(resume=directory)
    assert "metrics.jsonl is damaged (its content is not what was written)" in caplog.text
    assert_same(directory, whole / "finished")


def test_digests_are_those_of_the_files_that_are_there(whole: Path, tmp_path: Path) -> None:
    """A resumed run has no digests until it ends."""
    seen: list[object] = []
    directory = tmp_path / "run"
    shutil.copytree(whole / "finished", directory)

    def look(event: object) -> None:
        seen.append(json.loads((directory / "run.json").read_text())["digests"])

    run({"num-server-rounds": 5}, resume=directory, on_event=look)
    assert seen[0] == {}
    info = json.loads((directory / "run.json").read_text())
    assert set(info["digests"]) == {
        "config.toml", "metrics.jsonl", "partition.npz", "model.safetensors",
        *(f"clients.parquet/round-{number:06d}.parquet" for number in (0, 2, 4, 5)),
    }  # fmt: skip
    assert len(load_result(directory).clients) == 12


def test_a_number_of_a_model_that_changed_is_seen(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "finished", tmp_path / "run")
    file = tmp_path / "run" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 128  # the sign of the last number
    file.write_bytes(bytes(content))
    with pytest.raises(
        ValueError, match=r"model\.safetensors is damaged \(its content is not what was written\)"
    ):
        load_result(tmp_path / "run")
