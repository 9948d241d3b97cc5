"""The page contains the numbers, loads nothing external, and shows users' names as text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import fedpisa
from fedpisa.cli.main import main
from fedpisa.report import Written, write_report
from fedpisa.studies.study import Study

WriteRun = Callable[..., Path]

VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = "<img src=x onerror=alert(1)>&\"'{{7*7}}"


class Page(HTMLParser):
    """A parser that checks the nesting of elements and collects text, attributes and scripts."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.scripts: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open and self.open[-1] in ("script", "style") else self.words).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = next(json.loads(text) for text in self.scripts if text.startswith("{"))
        return found


@pytest.fixture
def written(write_run: WriteRun, tmp_path: Path) -> Written:
    residuals = {"primal_residual": [1.0, 0.1, 0.01, 0.001], "augmented_lagrangian": [1.0, 0.5, 0.1, -0.1]}
    for alpha in (0.1, 1.0):
        for seed, value in enumerate((0.90, 0.92, 0.94)):
            keys = {"seed": seed, "dirichlet-alpha": alpha}
            write_run(f"fedavg-{alpha}-{seed}", value - 0.1 - seed / 100, keys=keys)
            write_run(f"sisa-{alpha}-{seed}", value, keys={"algorithm": "sisa", **keys}, columns=residuals)
    write_run("wild", 0.1, keys={"algorithm": "fedprox", "dirichlet-alpha": 1.0}, status="diverged", rounds=2)
    return write_report([tmp_path / "runs"], tmp_path / "out" / "page.html", target=0.7)


def test_it_parses_and_holds_every_number(written: Written) -> None:
    page = Page(written.page)
    for part in (
        "sisa 92.00%",
        "92.00 ± 2.00",
        "[85.41, 95.76]",  # logit(0.92) ± 0.02 t / sqrt(3) / (0.92 0.08), t = 4.303
        "81.00 ± 1.00",
        "3 of 3",
        "12 finished, 1 diverged",
        "fedprox on dirichlet-alpha=1.0: 1 diverged",
        "num-server-rounds",
        r"\toprule",
    ):
        assert part in page.text, part


def test_curves_are_means_and_sample_deviations(written: Written) -> None:
    data = Page(written.page).data
    one = next(s for s in data["curves"]["series"] if data["variants"][s["variant"]] == "sisa")
    assert one["x"] == {
        "round": [0, 1, 2, 3, 4],
        "bytes": [0, 3, 6, 9, 12],
        "local-steps": [0, 30, 60, 90, 120],
        "seconds": [0, 0.5, 1, 1.5, 2],
    }
    assert one["y"]["test_accuracy"] == [0, 0.23, 0.46, 0.69, 0.92]
    assert one["sd"]["test_accuracy"] == [0, 0.005, 0.01, 0.015, 0.02]
    assert one["y"]["train_loss"][0] is None
    assert [metric["id"] for metric in data["residuals"]["metrics"]] == [
        "primal_residual",
        "augmented_lagrangian",
    ]
    wild = next(s for s in data["curves"]["series"] if data["variants"][s["variant"]] == "fedprox")
    assert (wild["n"], wild["sd"], wild["note"], len(wild["x"]["round"])) == (1, {}, "1 diverged", 3)


def test_nothing_is_loaded_from_elsewhere(written: Written) -> None:
    page = Page(written.page)
    for _, name, value in page.attributes:
        assert name not in ("src", "srcset", "poster", "action", "background") or value is None
        assert name != "href" or (value or "").startswith("#")
        assert not name.startswith("on")
    everything = written.page.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\((?!#)", everything)
    assert ("meta", "http-equiv", "Content-Security-Policy") in page.attributes


def test_names_stay_text(write_run: WriteRun, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    tables = {"base": {"data-dir": evil}, "variant": [{"name": HOSTILE}]}
    (planned,) = Study.from_mapping(tables).runs()
    run = write_run(f"study/{planned.path}", keys=planned.keys, info={"machine": {"device": evil}})
    (run.parents[3] / "study.toml").write_text(tomli_w.dumps(tables))
    broken = write_run("<b>broken")
    (broken / "run.json").unlink()
    file = write_report([tmp_path / "runs"], tmp_path / "page.html", title=HOSTILE).page
    page = Page(file)
    tags = {tag for tag, _, _ in page.attributes}
    assert "img" not in tags
    assert len(page.scripts) == 3  # the style, the data, the script
    assert page.data["variants"] == [HOSTILE]
    assert HOSTILE in page.text
    assert "<b>broken cannot be read: " in page.text
    assert page.text.count("cannot be read") == 1
    assert evil in page.text
    assert "<b>broken" in page.text
    assert "49" not in page.text.split("Answer")[0]


def test_what_runs_did_not_store_is_said(written: Written, write_run: WriteRun, tmp_path: Path) -> None:
    text = Page(written.page).text
    assert "no labels by client: the data have none, or an earlier version did not store them" in text
    assert "No values by client." in text
    assert "run with per-client = true to have them" in text


def test_runs_without_a_round_are_named(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run("a", status="running")
    (run / "metrics.jsonl").write_text("")
    (run / "partition.npz").unlink()
    page = Page(write_report([run], tmp_path / "page.html").page)
    assert "No run finished, so there is nothing to rank." in page.text
    assert "1 unfinished" in page.text
    assert "no run stored its partition" in page.text
    assert page.data["curves"]["series"] == []


def test_many_rounds_are_thinned_and_the_last_kept(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run("a", rounds=1001, columns={})
    page = Page(write_report([run], tmp_path / "page.html").page)
    (one,) = page.data["curves"]["series"]
    assert len(one["x"]["round"]) == 335
    assert one["x"]["round"][-2:] == [999, 1001]
    assert one["x"]["bytes"][-1] == 3003
    assert "One in 3 of 1001 rounds is drawn." in page.text


def test_the_same_runs_give_the_same_bytes(written: Written, tmp_path: Path) -> None:
    again = write_report([tmp_path / "runs"], tmp_path / "again" / "page.html", target=0.7)
    assert again.page.read_bytes() == written.page.read_bytes()
    assert [file.read_bytes() for file in again.tables] == [file.read_bytes() for file in written.tables]


def test_bad_requests_are_explained(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run("a")
    with pytest.raises(ValueError, match=r"must end in \.html, not 'a\.pdf'"):
        write_report([run], tmp_path / "a.pdf")
    with pytest.raises(ValueError, match="a target of 90 is not an accuracy"):
        write_report([run], tmp_path / "a.html", target=90)


def test_the_command(
    write_run: WriteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run("a")
    monkeypatch.chdir(tmp_path)
    assert main(["report", "runs", "--target", "0.5", "--title", "Mine"]) == 0
    assert capsys.readouterr().out == "report: report.html\ntables: report-tables, CSV and LaTeX\n"
    assert "<h1>Mine</h1>" in (tmp_path / "report.html").read_text()
    names = sorted(file.name for file in (tmp_path / "report-tables").iterdir())
    assert names == sorted(
        f"{name}.{kind}"
        for name in ("overview", "accuracy", "significance", "cost", "clients", "runs", "hyperparameters")
        for kind in ("csv", "tex")
    )
    assert main(["report", "nowhere"]) == 2
    assert "nowhere is not a directory" in capsys.readouterr().err


def test_without_data_torch_stays_out(write_run: WriteRun) -> None:
    code = "from fedpisa.report import write_report; import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# ------------------------------------------------------------------------------------------------- in a browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

# This script hovers over every picture, presses every control, and reports elements and overlapping texts.
PROBE = """<script>
window.addEventListener("load", () => setTimeout(() => {
  const report = { errors: window.problems, tips: [], curves: [], overlaps: [] };
  report.wide = document.documentElement.scrollWidth - innerWidth;
  const count = () => document.querySelectorAll("[data-panels=curves] .curve").length;
  const hover = (picture) => {
    const box = picture.getBoundingClientRect();
    const place = { clientX: box.left + box.width * 0.97, clientY: box.top + box.height * 0.4 };
    picture.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, ...place }));
    const tip = document.getElementById("tip");
    report.tips.push(tip.hidden ? null : tip.innerText);
    picture.dispatchEvent(new PointerEvent("pointerleave"));
  };
  document.querySelectorAll(".panel svg").forEach(hover);
  const picture = document.querySelector("[data-panels=curves] svg");
  picture.dispatchEvent(new KeyboardEvent("keydown", { key: "Home", bubbles: true }));
  picture.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  report.key = document.getElementById("tip").innerText;
  report.curves.push(count());
  const toggle = document.querySelector("[data-legend=curves] button");
  toggle.click();
  report.curves.push(count());
  toggle.click();
  for (const axis of ["bytes", "local-steps", "seconds", "round"]) {
    document.querySelector(`[data-controls=curves] [data-choice="${axis}"]`).click();
    hover(picture);
  }
  for (const svg of document.querySelectorAll(".panel svg")) {
    const measure = (text) => ({ words: text.textContent, box: text.getBoundingClientRect() });
    const texts = [...svg.querySelectorAll("text")].map(measure);
    const whole = svg.getBoundingClientRect();
    texts.forEach((a, i) => {
      const sticksOut = a.box.left < whole.left - 1 || a.box.right > whole.right + 1;
      if (sticksOut || a.box.bottom > whole.bottom + 1) report.overlaps.push([a.words, "the edge"]);
      texts.slice(i + 1).forEach((b) => {
        const across = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
        const down = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
        if (across > 1 && down > 3) report.overlaps.push([a.words, b.words]);
      });
    });
  }
  const found = document.createElement("output");
  found.id = "found";
  found.textContent = JSON.stringify(report);
  document.body.append(found);
}, 300));
</script>"""


def browse(file: Path, width: int, scratch: Path) -> dict[str, Any]:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser is installed here: none of {', '.join(BROWSERS)}")
    guard = (
        "<script>window.problems = []; onerror = (message) => { problems.push(message); };</script><style>"
    )
    text = file.read_text(encoding="utf-8").replace("<style>", guard, 1).replace("</body>", f"{PROBE}</body>")
    copy = scratch / f"probe-{width}.html"
    copy.write_text(text, encoding="utf-8")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={scratch / 'profile'}",
    ]
    command += [f"--window-size={width},900", "--virtual-time-budget=3000", "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<output id="found">(.*?)</output>', done.stdout, re.S)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    import html

    answer: dict[str, Any] = json.loads(html.unescape(found[1]))
    return answer


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 600])
def test_in_a_browser(tmp_path: Path, width: int) -> None:
    for algorithm in ("fedavg", "sisa"):
        for alpha in (0.1, 10.0):
            for seed in (0, 1):
                keys = {"algorithm": algorithm, "dirichlet-alpha": alpha, "seed": seed}
                fedpisa.run(
                    {"num-server-rounds": 3, "model": "logistic", **keys},
                    tmp_path / "runs" / f"{algorithm}-{alpha}-{seed}",
                )
    file = write_report([tmp_path / "runs"], tmp_path / "page.html").page
    found = browse(file, width, tmp_path)
    assert found["errors"] == []
    assert found["curves"] == [4, 2]
    assert found["overlaps"] == []
    assert found["wide"] <= 0
    # Two pictures each of the curves, the splits, the clients and the residuals, then four axes.
    assert len(found["tips"]) == 12
    assert all(found["tips"])
    data = Page(file).data
    first = next(one for one in data["curves"]["series"] if one["split"] == 0)
    value = f"{100 * first['y']['test_accuracy'][3]:.2f}%"
    assert found["tips"][0].startswith("server round: 3")
    assert value in found["tips"][0]
    assert found["key"].startswith("server round: 1")
    assert found["tips"][8].startswith("MB up and down: ")
    assert "round 3" in found["tips"][8]
