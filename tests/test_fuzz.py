"""Random configurations, tables and damaged directories for three minutes; `tests/fuzz.py` runs more of them."""

from __future__ import annotations

import pytest

from tests import fuzz


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_random_cases_work_or_are_refused_in_one_line(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = fuzz.main([f"--{kind}", "100000", "--seconds", "60"])
    said = capsys.readouterr().out
    assert code == 0, said
    assert f"{kind} " in said
