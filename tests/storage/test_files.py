"""Files of results: links are not followed, cells are no formulas, and text cannot control a terminal."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedpisa
from fedpisa.cli.main import main
from fedpisa.components import LOG, escaped, one_line
from fedpisa.config.flower import read_run_config
from fedpisa.config.overrides import parse_overrides
from fedpisa.config.run import RunConfig
from fedpisa.report import write_report
from fedpisa.storage.csv_file import to_csv
from fedpisa.storage.files import locked, read_bytes, replace_file

KEYS = {"model": "logistic", "num-server-rounds": 2, "num-clients": 3, "checkpoint-every": 1}
FILES = ("config.toml", "run.json", "metrics.jsonl", "partition.npz", "model.safetensors")


# -------------------------------------------------------------------------------------------------- links


def linked(path: Path, target: Path) -> None:
    """Move a file or folder to ``target`` and replace it by a link."""
    path.rename(target)
    path.symlink_to(target)


@pytest.mark.parametrize("name", FILES)
def test_a_link_in_a_result_is_not_read(name: str, tmp_path: Path) -> None:
    fedpisa.run(KEYS, tmp_path / "results" / "run")
    file = tmp_path / "results" / "run" / name
    linked(file, tmp_path / "secret")
    with pytest.raises(ValueError, match=f"{name} is a symbolic link, and none is followed") as caught:
        fedpisa.load_result(file.parent)
    assert "\n" not in str(caught.value)
    assert main(["plot", str(file.parent), "--out", str(tmp_path / "curves.png")]) == 2
    assert main(["report", str(file.parent), "--out", str(tmp_path / "page.html")]) == 2
    # A run that cannot be read does not prevent the other runs' report.
    fedpisa.run(KEYS, tmp_path / "results" / "other")
    page = write_report([tmp_path / "results"], tmp_path / "page.html").page.read_text()
    assert "is a symbolic link, and none is followed" in page


@pytest.mark.parametrize("name", ["checkpoint", "clients.parquet"])
def test_a_folder_that_is_a_link_is_not_entered(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = fedpisa.run({**KEYS, "per-client": True}, run)
    assert len(result.clients) == 9
    linked(run / name, tmp_path / "elsewhere")
    before = {path: path.read_bytes() for path in (tmp_path / "elsewhere").iterdir()}
    with pytest.raises(ValueError, match=f"{name} is a symbolic link"):
        fedpisa.run({"num-server-rounds": 3}, resume=run)
    assert {path: path.read_bytes() for path in (tmp_path / "elsewhere").iterdir()} == before


@pytest.mark.parametrize("name", [*FILES, "checkpoint", "clients.parquet", *(f".{f}.partial" for f in FILES)])
def test_nothing_is_written_through_a_link(name: str, tmp_path: Path) -> None:
    """Resuming a result whose files are links does not change the links' targets."""
    run, secret = tmp_path / "run", tmp_path / "secret"
    fedpisa.run({**KEYS, "per-client": True}, run)
    about = json.loads((run / "run.json").read_bytes())
    (run / "run.json").write_text(json.dumps({**about, "status": "interrupted"}))
    if (run / name).exists():
        linked(run / name, secret)
    else:
        secret.write_text("private")
        (run / name).symlink_to(secret)
    contents = [secret] if secret.is_file() else sorted(secret.iterdir())
    before = [path.read_bytes() for path in contents]
    try:
        fedpisa.run({"num-server-rounds": 3}, resume=run)
    except ValueError as error:
        assert f"{name} is a symbolic link" in str(error)  # noqa: PT017
    assert ([secret] if secret.is_file() else sorted(secret.iterdir())) == contents
    assert [path.read_bytes() for path in contents] == before


def test_a_link_inside_a_study_is_not_entered(tmp_path: Path) -> None:
    study = fedpisa.Study.from_mapping({"base": KEYS})
    fedpisa.compare(study, tmp_path / "study")
    linked(tmp_path / "study" / "runs" / "base", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="base is a symbolic link"):
        fedpisa.load_study(tmp_path / "study")
    with pytest.raises(ValueError, match="base is a symbolic link"):
        fedpisa.compare(study, tmp_path / "study")


def test_a_result_may_be_named_by_a_link(tmp_path: Path) -> None:
    """A link that the user names is followed; links inside a result are not."""
    fedpisa.run(KEYS, tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert fedpisa.load_result(tmp_path / "link").status == "finished"
    assert fedpisa.run({"num-server-rounds": 3}, resume=tmp_path / "link").status == "finished"


def test_links_are_replaced_and_what_is_no_file_refused(tmp_path: Path) -> None:
    secret, link = tmp_path / "secret", tmp_path / "link"
    secret.write_bytes(b"private")
    link.symlink_to(secret)
    with pytest.raises(ValueError, match="is a symbolic link"):
        read_bytes(link)
    replace_file(link, b"new")
    assert (link.read_bytes(), link.is_symlink(), secret.read_bytes()) == (b"new", False, b"private")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is not a file"):
        read_bytes(tmp_path / "pipe")
    (tmp_path / ".lock").symlink_to(secret)
    with pytest.raises(ValueError, match=r"\.lock is a symbolic link"), locked(tmp_path):
        pass
    assert secret.read_bytes() == b"private"


# ------------------------------------------------------------------------------------------------ CSV, terminals

TEXTS = st.text(st.sampled_from("=+-@\t\r\n ,;\"'a1.e\x1b\u202e\uff1d")) | st.text()


@given(texts=st.lists(TEXTS, min_size=1), numbers=st.lists(st.floats(), min_size=1), title=TEXTS)
def test_no_cell_begins_with_a_formula(texts: list[str], numbers: list[float], title: str) -> None:
    length = min(len(texts), len(numbers))
    frame = pd.DataFrame({"number": numbers[:length], f"x{title}": texts[:length], title: texts[:length]})
    content = to_csv(frame).decode()
    head, *rows = csv.reader(io.StringIO(content))
    assert len(rows) == length
    for cell in (*head, *(cell for row in rows for cell in row[1:])):
        is_number = pd.notna(pd.to_numeric(cell, errors="coerce"))
        assert is_number or not cell.lstrip().startswith(tuple("=+-@\t\r\uff1d\uff0b\uff0d\uff20"))
        assert escaped(cell) == cell
    kept = pd.read_csv(io.StringIO(content), usecols=[0], float_precision="round_trip").iloc[:, 0]
    np.testing.assert_array_equal(kept.to_numpy(dtype=float), np.array(numbers[:length]))


@given(st.text())
def test_a_line_is_printable_and_a_printable_text_stays(text: str) -> None:
    assert escaped(text).isprintable()
    assert one_line(text).isprintable()
    assert (escaped(text) == text) == text.isprintable()


EVIL = "\x1b[2Jgone\rsisa\u202e\x07"


def test_names_control_neither_terminal_nor_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Control characters in variants, keys, modules and errors are escaped in every command's output."""
    study = fedpisa.Study.from_mapping(
        {"base": {**KEYS, "num-server-rounds": 1}, "sweep": {"data-dir": [EVIL]}, "variant": [{"name": EVIL}]}
    )
    (tmp_path / "study.toml").write_text(study.to_toml())
    out = str(tmp_path / "out")
    assert main(["compare", str(tmp_path / "study.toml"), "--out", out]) == 0
    assert main(["report", out, "--out", str(tmp_path / "page.html")]) == 0
    assert main(["run", "-c", f"model='{EVIL}'"]) == 2
    assert main(["run", "-c", f'"{EVIL}']) == 2
    assert main(["run", f"{EVIL}.toml"]) == 2
    LOG.warning("from a node: %s", EVIL)
    LOG.warning("two\nlines")
    out, err = capsys.readouterr()
    logged = "\n".join(r.getMessage() for r in caplog.records)  # Ray changes the format of pytest's handler
    for text in (out, err, logged):
        assert all(line.isprintable() for line in text.splitlines() if "gone" in line)
        assert not {"\u202e", "\x07"} & set(text)
        assert "gone" in text or text == out
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING][-1] == "two\\nlines"
    for file in tmp_path.rglob("*.csv"):
        assert all(line.isprintable() for line in file.read_text().split("\n")), file
    assert all(
        line.isprintable() for line in repr(fedpisa.load_study(tmp_path / "out")[0].result).splitlines()
    )


@pytest.mark.parametrize("name", ["x" * 5000, "/dev/null/x", "~no-such-user/x", "no\0name"])
def test_a_path_that_cannot_exist_is_refused_in_one_line(name: str) -> None:
    few = {"num-clients": 2, "num-server-rounds": 1}
    uses: list[Callable[[], object]] = [
        *(
            partial(fedpisa.run, {"dataset": "file", "data-file": name + end, **few})
            for end in (".csv", ".npz")
        ),
        *(partial(fedpisa.run, {"dataset": data, "data-dir": name, **few}) for data in ("mnist-t10k", "a9a")),
        *(partial(use, name) for use in (fedpisa.load_result, fedpisa.load_study, fedpisa.run)),
        partial(fedpisa.run, resume=name),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=r"\A.+\Z"):
            use()


# ------------------------------------------------------------------------------------------------------- depth


@pytest.mark.parametrize("depth", [200, 2_000, 100_000])
def test_deep_nesting_is_one_line(depth: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists, tables = "[" * depth + "]" * depth, "{a=" * depth + "1" + "}" * depth
    mappings = '{"a": ' * depth + "1" + "}" * depth
    file = tmp_path / "deep.toml"
    dotted = f"[{'.'.join(['a'] * min(depth, 2_000))}]"  # Python reads longer ones in quadratic time
    texts = (f"widths = {lists}", f"optimizer-options = {tables}", dotted)
    for text in texts:
        file.write_text(text)
        for command in (["run"], ["compare"], ["tune"], ["partition"]):
            assert main([*command, str(file)]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("error: ")
            assert len(line) < 5_000
    for text in (lists, tables, mappings):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            RunConfig.from_mapping(read_run_config({"widths": text, "model": "mlp"})[1])
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"nested too deeply|cannot read"):
        parse_overrides(f"a={'[' * 100_000}{']' * 100_000}")
