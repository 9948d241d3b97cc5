"""Random configurations, tables and damaged directories for three minutes; `tests/fuzz.py` runs more of them."""

from __future__ import annotations

import pytest

from tests import fuzz


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("configs", 1000), ("tables", 2000), ("directories", 60)])
def test_random_cases_work_or_are_refused_in_one_line(
    kind: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    code = fuzz.main([f"--{kind}", str(count), "--seconds", "60"])
    said = capsys.readouterr().out
    assert code == 0, said
    assert f"{kind} " in said
