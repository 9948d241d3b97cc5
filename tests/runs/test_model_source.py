"""A run stores the code of the user's model, and warns if the code has changed when it resumes."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from pathlib import Path

import pytest

import fedpisa

CODE = """
from torch import nn
class Net(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.last = nn.Linear(64, num_outputs)
    def forward(self, x):
        return self.last(x.flatten(1)){more}
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "a_model_of_ours.py"
    file.write_text(CODE.format(more=""))
    monkeypatch.syspath_prepend(tmp_path)
    yield file
    sys.modules.pop(file.stem, None)


@pytest.mark.parametrize("changes", [False, True])
def test_resume_warns_if_the_models_code_has_changed(
    model: Path, changes: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = {"model": f"{model.stem}:Net", "num-clients": 2, "num-server-rounds": 1}
    fedpisa.run(keys, tmp_path / "run")
    assert len(json.loads((tmp_path / "run/run.json").read_text())["model_source"]) == 32
    if changes:
        model.write_text(CODE.format(more=" * 2"))
        sys.modules.pop(model.stem)
        importlib.invalidate_caches()
    with caplog.at_level(logging.WARNING, "fedpisa"):
        fedpisa.run({"num-server-rounds": 2}, resume=tmp_path / "run")
    assert ("the code of the model has changed" in caplog.text) == changes


def test_models_of_ours_have_none(tmp_path: Path) -> None:
    fedpisa.run({"num-clients": 2, "num-server-rounds": 1}, tmp_path / "run")
    assert json.loads((tmp_path / "run/run.json").read_text())["model_source"] is None
