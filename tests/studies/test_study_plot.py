"""The figure and the hyper-parameters of a study that was run."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedpisa
from fedpisa.cli.main import main
from fedpisa.plots import REFERENCE
from fedpisa.report import write_report

TABLES = {
    "seeds": [0, 1],
    "base": {"num-server-rounds": 2, "model": "logistic", "target-accuracy": 0.9},
    "sweep": {"dirichlet-alpha": [0.5, 10], "fraction-train": [1.0]},
    "variant": [
        {
            "name": "fed_avg & co",
            "algorithm": "fedavg",
            "at": [{"dirichlet-alpha": 10, "learning-rate": 0.5}],
        },
        {"name": "sisa", "algorithm": "sisa", "local-steps": 2},
    ],
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "study"
    fedpisa.compare(fedpisa.Study.from_mapping(TABLES), folder)
    return folder


def test_the_figure_in_python(directory: Path, tmp_path: Path) -> None:
    study = fedpisa.Study.from_mapping(TABLES)
    figure = study.plot(directory, "gradients", labels={"sisa": "SISA"})
    titles = [ax.get_title(loc="left").replace("\u00a0", " ") for ax in figure.axes]
    assert titles == ["dirichlet-alpha = 0.5", "dirichlet-alpha = 10"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fed_avg & co", "SISA"]
    with pytest.raises(ValueError, match=r"no run of the study in .* has started: run fedpisa compare first"):
        study.plot(tmp_path)


def test_the_command(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "a.svg")
    options = ["--against", "bytes", "--band", "interval", "--width", "3.25in", "--font-size", "8"]
    assert main(["plot", str(directory), *options, "--labels", "sisa=SISA", "--out", out]) == 0
    assert capsys.readouterr().out == f"picture: {out}\n"
    picture = (tmp_path / "a.svg").read_text()
    assert "SISA" in picture
    assert 'width="234pt"' in picture  # 3.25 inches
    assert main(["plot", str(directory), str(directory)]) == 2
    assert "plot it alone" in capsys.readouterr().err
    assert main(["plot", str(directory), "--labels", "sissa=SISA"]) == 2
    assert "no variant 'sissa' to label: choose from fed_avg & co, sisa" in capsys.readouterr().err


def test_hyperparameters_as_latex(directory: Path, tmp_path: Path) -> None:
    written = write_report([directory], tmp_path / "r.html")
    (file,) = (path for path in written.tables if path.name == "hyperparameters.tex")
    lines = file.read_text().splitlines()
    assert r"key & all algorithms & fed\_avg \& co & sisa \\" in lines
    rules = [number for number, line in enumerate(lines) if line == r"\midrule"]
    assert len(rules) == 2
    shared, own = lines[rules[0] : rules[1]], lines[rules[1] :]
    assert r"dirichlet-alpha & 0.5, 10.0 &  &  \\" in shared
    assert r"seeds & 0, 1 &  &  \\" in shared
    assert not any(line.startswith(("dropout", "seed ", "target-accuracy")) for line in lines)
    (rate,) = (line for line in own if line.startswith("learning-rate"))
    assert "0.5 (dirichlet-alpha=10.0)" in rate
    assert [line.split(" & ")[3] for line in own if line.startswith("local-steps")] == [r"2 \\"]


def test_a_reference_is_a_grey_line_and_the_last(tmp_path: Path) -> None:
    reference = {"name": "all", "algorithm": "centralised"}
    study = fedpisa.Study.from_mapping({**TABLES, "variant": [reference, *TABLES["variant"]]})
    fedpisa.compare(study, tmp_path / "study")
    grey = REFERENCE["color"]
    for against, points in (("rounds", 3), ("bytes", 2)):  # against bytes it is horizontal
        figure = study.plot(tmp_path / "study", against)
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert names == ["fed_avg & co", "sisa", "all"]
        drawn = [line for line in figure.axes[0].lines if line.get_color() == grey]
        assert points in [len(line.get_xdata()) for line in drawn if line.get_label() != "target"]
