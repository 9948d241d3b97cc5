"""Edges of search spaces: where a value is at one, what lies beyond, and that an extension keeps what is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedpisa.cli.main import main
from fedpisa.tuning.extension import EDGE, Edge, Side, edge_of, edges, widened
from fedpisa.tuning.plan import Plan, Subject
from fedpisa.tuning.space import Choices, Range, Space, parse_space, read_stored_space, stored_space
from tests.tuning.plans import SGD, plan_of, write

finite = st.floats(-1e6, 1e6, allow_subnormal=False)
positive = st.floats(1e-6, 1e6)


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    kind = draw(st.sampled_from(["linear", "log", "whole", "whole log", "step", "whole step"]))
    log, whole = "log" in kind, "whole" in kind
    if "step" in kind:
        step = draw(st.integers(1, 20))
        low = draw(st.integers(-20, 20)) * step
        high = low + draw(st.integers(1, 30)) * step
        if whole:
            return Range(low, high, step=step, whole=True)
        return Range(low / 100, high / 100, step=step / 100)
    numbers: Any = st.integers(1 if log else -1000, 1000) if whole else positive if log else finite
    low, high = sorted((draw(numbers), draw(numbers)))
    assume(high > low and (whole or high - low > 1e-3 * max(abs(low), abs(high))))
    return Range(low, high, log=log, whole=whole)


whole_lists = st.lists(st.integers(-1000, 1000), min_size=2, max_size=8, unique=True)
real_lists = st.lists(st.floats(1e-4, 1e4), min_size=2, max_size=8, unique_by=lambda value: f"{value:.6g}")
number_lists: st.SearchStrategy[Choices] = (whole_lists | real_lists).map(
    lambda values: Choices(tuple(values))
)
spaces: st.SearchStrategy[Space] = ranges() | number_lists
bounds = st.tuples(st.sampled_from([-math.inf, 0.0, 0.5, 1.0, 3.0]), st.sampled_from([1.0, 20.0, math.inf]))


def allowed_by(space: Space, low: float, high: float) -> Callable[[float], bool]:
    """Return a key's bounds, which contain the space as every plan's do."""
    values = (space.low, space.high) if isinstance(space, Range) else space.numbers
    last = space.grid()[-1] if isinstance(space, Range) and space.step else values[-1]  # may be rounded up
    low, high = min(low, values[0]), max(high, values[-1], last)  # type: ignore[type-var]
    return lambda value: low <= value <= high


def ends(space: Space) -> tuple[float, float]:
    return (space.low, space.high) if isinstance(space, Range) else (space.numbers[0], space.numbers[-1])


def contains(space: Space, value: object) -> bool:
    distribution = space.distribution()
    return bool(distribution._contains(distribution.to_internal_repr(space.encoded(value))))


def sample(space: Space, at: float) -> object:
    """Return a value of the space, ``at`` of its way along."""
    if isinstance(space, Choices):
        return space.grid()[round(at * (space.size - 1))]
    if space.step is not None:
        steps = round(at * round((space.high - space.low) / space.step))
        return min(space.low + steps * space.step, space.high)
    value = (
        space.low * (space.high / space.low) ** at if space.log else space.low + at * (space.high - space.low)
    )
    value = min(max(value, space.low), space.high)
    return round(value) if space.whole else value


@settings(deadline=None, max_examples=200)
@given(space=spaces, at=st.floats(0, 1))
def test_a_value_is_at_an_edge_by_its_place_on_the_scale(space: Space, at: float) -> None:
    value = sample(space, at)
    if isinstance(space, Choices):
        wanted = {space.numbers[0]: "low", space.numbers[-1]: "high"}.get(value)  # type: ignore[call-overload]
    else:
        assert isinstance(value, int | float)
        place = (
            (math.log(value) - math.log(space.low)) / (math.log(space.high) - math.log(space.low))
            if space.log
            else (value - space.low) / (space.high - space.low)
        )
        assume(all(abs(place - limit) > 1e-9 for limit in (EDGE, 1 - EDGE)))
        wanted = "low" if place < EDGE else "high" if place > 1 - EDGE else None
    assert edge_of(space, value) == wanted
    for end, side in zip(ends(space), ("low", "high"), strict=True):
        assert edge_of(space, end) == side


@given(space=ranges(), at=st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_the_largest_and_the_smallest_value_tried_are_at_an_edge(space: Range, at: list[float]) -> None:
    tried: list[Any] = sorted({sample(space, one) for one in at})  # type: ignore[type-var]
    assume(len(tried) > 1)
    assert edge_of(space, tried[0], tried) in ("low", edge_of(space, tried[0]))
    assert edge_of(space, tried[-1], tried) in ("high", edge_of(space, tried[-1]))
    for value in tried[1:-1]:
        assert edge_of(space, value, tried) == edge_of(space, value)


@pytest.mark.parametrize(
    "values", [(1,), ("a", "b"), (16, 32, "full"), (True, False), ([32], [64]), (1.0, math.inf), (None, 1)]
)
def test_lists_that_have_no_order_have_no_edges(values: tuple[Any, ...]) -> None:
    assert {edge_of(Choices(values), value) for value in values} == {None}
    assert widened(Choices(values), "high", lambda value: True) is None


@settings(deadline=None, max_examples=300)
@given(
    space=spaces, side=st.sampled_from(["low", "high"]), bounds=bounds, at=st.floats(0, 1), grid=st.booleans()
)
def test_a_wider_space_contains_the_old_one_and_stays_within_the_keys_bounds(
    space: Space, side: Side, bounds: tuple[float, float], at: float, grid: bool
) -> None:
    if grid and isinstance(space, Range) and math.isinf(space.size):
        space = Range(space.low, space.high, log=space.log, points=5)
    allows = allowed_by(space, *bounds)
    wider = widened(space, side, allows, grid=grid)
    if wider is None:
        return
    (low, high), (old_low, old_high) = ends(wider), ends(space)
    assert allows(low)
    assert allows(high)
    assert low < old_low if side == "low" else high > old_high
    if not grid:  # the other end stays; a grid's ends are computed
        assert high == old_high if side == "low" else low == old_low
        assert type(wider) is type(space)
        assert contains(wider, sample(space, at))
    if isinstance(wider, Choices):
        assert all(map(allows, wider.numbers))
        assert set(map(repr, space.grid())) < set(map(repr, wider.values))
    assert read_stored_space(stored_space(wider)) == wider
    # What was the end is none any longer, unless the key's bound is near.
    if not isinstance(wider, Choices) and edge_of(wider, old_high if side == "high" else old_low) == side:
        assert widened(space, side, lambda value: True) != wider


@settings(deadline=None, max_examples=200)
@given(space=ranges(), side=st.sampled_from(["low", "high"]))
def test_a_range_doubles_where_the_key_allows_all(space: Range, side: Side) -> None:
    wider = widened(space, side, lambda value: True)
    assume(not (space.log and space.whole and side == "low"))  # nothing whole is below 1
    assert isinstance(wider, Range)
    if space.log:
        wanted = space.high**2 / space.low if side == "high" else space.low**2 / space.high
        found = wider.high if side == "high" else wider.low
        assert found == (round(wanted) if space.whole else pytest.approx(wanted, rel=1e-9))
    else:
        length = space.high - space.low
        assert wider.high - wider.low == pytest.approx(2 * length, rel=1e-6, abs=1e-9)


@settings(deadline=None, max_examples=200)
@given(space=ranges(), side=st.sampled_from(["low", "high"]), data=st.data())
def test_a_range_ends_at_the_bound_of_its_key(space: Range, side: Side, data: st.DataObject) -> None:
    """An open or a closed bound within the new half: the range comes within a millionth of it, and keeps to it."""
    assume(space.step is None and not space.whole)
    share = data.draw(st.floats(0.1, 0.9))
    full = widened(space, side, lambda value: True)
    assert isinstance(full, Range)
    limit = sample(full, 0.5 + share / 2 if side == "high" else 0.5 - share / 2)
    assert isinstance(limit, float)
    open_end = data.draw(st.booleans())

    def allows(value: float) -> bool:
        inside = value <= limit if side == "high" else value >= limit
        return inside and not (open_end and value == limit)

    wider = widened(space, side, allows)
    assert isinstance(wider, Range)
    end = wider.high if side == "high" else wider.low
    assert allows(end)
    if end not in (0, 1):
        assert abs(full.fraction(end) - full.fraction(limit)) < 2e-6


@pytest.mark.parametrize(
    ("written", "side", "added"),
    [
        ([0.1, 0.3, 1], "high", [3, 10]),
        ([0.1, 0.3, 1], "low", [0.01, 0.03]),
        ([1, 10], "high", [100]),
        ([2, 4, 8], "low", [0.5, 1]),
        ([1, 2, 3, 4], "high", [5, 6, 7]),
        ([0, 0.5], "high", [1]),
        ([-1, 1], "low", [-3]),
        ([16, 64, 32], "high", [128, 256]),
    ],
)
def test_lists_go_on_by_their_ratio_or_their_step(written: list[Any], side: Side, added: list[float]) -> None:
    wider = widened(parse_space(written), side, lambda value: True)
    assert isinstance(wider, Choices)
    assert sorted(set(wider.values) - set(written)) == pytest.approx(added)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("key", "space", "value", "wider"),
    [
        ("learning-rate", Range(0.01, 3.0, log=True), 2.9, (0.01, 900.0)),
        ("learning-rate", Range(0.01, 3.0, log=True), 0.011, (0.01 / 300, 3.0)),
        ("local-steps", Range(1, 20, whole=True), 20, (1, 39)),
        ("local-steps", Range(1, 20, whole=True), 1, None),
        ("local-steps", Range(3, 9, whole=True), 3, (1, 9)),
        ("local-steps", Range(2, 20, whole=True), 2, (1, 20)),
        ("momentum", Range(0.5, 0.9), 0.9, (0.5, 1.0)),
        ("momentum", Range(0.1, 0.9), 0.1, (0.0, 0.9)),
        ("momentum", Range(-0.0, 0.01), 0.01, (0.0, 0.02)),
        ("fraction-train", Range(0.3, 0.6), 0.6, (0.3, 0.9)),
        ("fraction-train", Range(0.3, 0.7), 0.7, (0.3, 1.0)),
        ("fraction-train", Range(0.3, 1.0), 1.0, None),
        ("momentum", Choices((0, 0.5)), 0.5, (0, 1)),
        ("momentum", Choices((0, 0.9)), 0.9, None),
        ("local-steps", Choices((1, 5)), 1, None),
        ("batch-size", Choices((16, 32)), 16, (8, 32)),
        ("batch-size", Choices((16, "full")), 16, None),
    ],
)
def test_the_keys_of_a_run_bound_their_spaces(
    key: str, space: Space, value: object, wider: tuple[float, float] | None
) -> None:
    base = {"algorithm": "fedavg", "momentum": 0.5}
    subject = Subject("a", {}, PurePosixPath("a"), base, {key: space})
    found = edges(subject, {key: value})
    assert len(found) == (wider is not None)
    if wider is not None:
        assert ends(found[0].wider) == pytest.approx(wider, rel=1e-5)
        assert all(subject.allows(key, end) for end in ends(found[0].wider))
        assert found[0] == Edge(key, value, found[0].side, found[0].wider)


# ------------------------------------------------------------------------------------------ in a directory


def tuned(plan: Plan, out: Path, **options: Any) -> Any:
    pytest.importorskip("optuna", reason="needs the extra tune")
    from fedpisa.tuning.tune import tune

    return tune(plan, out, **options)


def values_of(standings: Any) -> list[Any]:
    return [
        (t.index, dict(t.keys), t.state, t.metric, t.rounds, t.gradients)
        for one in standings
        for t in one.trials
    ]


NARROW: dict[str, Any] = {
    "search": {"learning-rate": {"low": 0.001, "high": 0.004, "log": True}},
    "variant": [
        {"name": "sgd", "algorithm": "fedsgd"},
        {"name": "fixed", "algorithm": "fedsgd", "search": {"learning-rate": {"low": 0.001, "high": 4, "log": True}}},
    ],
}  # fmt: skip


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_an_extension_keeps_the_old_trials_and_gives_all_variants_as_many_more(
    tmp_path: Path, sampler: str
) -> None:
    """Gradient descent wants steps near 1/L, and its space ends at 0.004: the space grows until it does not."""
    plan = plan_of(**NARROW, tune={"trials": 8, "sampler": sampler})
    first = tuned(plan, tmp_path)
    assert [edge.key for edge in first[0].edges] == ["learning-rate"]
    later = tuned(plan, tmp_path, extend=9)
    assert not any(one.edges for one in later) or len(later[0].trials) == 8 * 10
    assert len(later[0].trials) == len(later[1].trials) == 8 * (1 + len(later[0].subject.earlier))
    assert len(later[0].subject.earlier) >= 1
    for one, before in zip(later, first, strict=True):
        assert values_of([one])[:8] == values_of([before])
        assert all(
            contains(one.subject.space[key], value) for t in one.trials for key, value in t.keys.items()
        )
    assert later[0].best.metric < first[0].best.metric
    # The directory keeps its extensions, in Python and on the command line.
    assert values_of(tuned(plan, tmp_path)) == values_of(tuned(plan, tmp_path, extend=1)) == values_of(later)
    assert len(pd.read_csv(tmp_path / "trials.csv")) == 2 * len(later[0].trials)


def test_an_interrupted_extension_ends_with_the_same_trials(tmp_path: Path) -> None:
    plan = plan_of(**NARROW, tune={"trials": 6})
    whole = values_of(tuned(plan, tmp_path / "whole", extend=2))
    assert len(whole) > 12
    for calls in (3, 15, 20):
        seen = 0

        def listen(progress: Any, calls: int = calls) -> None:
            nonlocal seen
            seen += progress.state != "running"
            if seen == calls:
                raise RuntimeError("stop here")

        with pytest.raises(RuntimeError, match="stop here"):
            tuned(plan, tmp_path / "cut", extend=2, on_progress=listen)
    assert values_of(tuned(plan, tmp_path / "cut", extend=2)) == whole


def test_an_extension_that_broke_off_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optuna = pytest.importorskip("optuna", reason="needs the extra tune")
    plan = plan_of(**NARROW, tune={"trials": 6})
    whole = values_of(tuned(plan, tmp_path / "whole", extend=1))
    add, calls = optuna.Study.add_trial, []

    def add_some(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 9:
            raise RuntimeError("stop here")
        add(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "add_trial", add_some)
        with pytest.raises(RuntimeError, match="stop here"):
            tuned(plan, tmp_path / "cut", extend=1)
    assert len(tuned(plan, tmp_path / "cut")[0].trials) == 6
    assert values_of(tuned(plan, tmp_path / "cut", extend=1)) == whole


def test_a_grid_is_extended_by_its_new_points(tmp_path: Path) -> None:
    search = {"learning-rate": [0.001, 0.002], "momentum": [0, 0.9]}
    plan = plan_of(**{**SGD, "search": search, "tune": {"sampler": "grid", "trials": 4}})
    (one,) = tuned(plan, tmp_path, extend=1)
    points = [(t.keys["learning-rate"], t.keys["momentum"]) for t in one.trials]
    assert points[:4] == [(0.001, 0), (0.001, 0.9), (0.002, 0), (0.002, 0.9)]
    assert sorted(points) == [
        (rate, momentum) for rate in (0.001, 0.002, 0.004) for momentum in (0, 0.9, 1.8)
    ]


def test_a_process_that_is_behind_follows_an_extension(tmp_path: Path) -> None:
    from fedpisa.tuning.trials import Trials

    plan = plan_of(**NARROW, tune={"trials": 2, "sampler": "random"})
    standings = tuned(plan, tmp_path)
    with Trials(plan, tmp_path) as behind, Trials(plan, tmp_path) as other:
        wider = [{"learning-rate": Range(0.001, 8.0, log=True)} for _ in standings]
        other.widen(0, wider)
        other.widen(0, wider)  # it has been done
        assert other.plan.extensions == 1
        claim = behind.claim()
        assert claim is not None
        assert (claim.index, behind.plan.budget(claim.subject)) == (2, 4)
        with behind.standing_still() as found:
            assert [len(own) for own in found] == [3, 2]


def test_the_command_says_which_values_are_at_an_edge_and_widens_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="needs the extra tune")
    search = {"learning-rate": [0.001, 0.003]}
    tables = {**SGD, "search": search, "tune": {"sampler": "grid", "trials": 2}}
    file, out = write(tmp_path / "small.toml", **tables), tmp_path / "out"
    assert main(["tune", str(file), "--out", str(out)]) == 0
    assert (
        "variant 'sgd': the best learning-rate, 0.003, is among the largest tried: "
        "--extend 1 widens its space"
    ) in capsys.readouterr().err
    assert pd.read_csv(out / "summary.csv").at_edge.tolist() == ["learning-rate"]
    assert main(["tune", str(file), "--out", str(out), "--extend", "1"]) == 0
    shown = capsys.readouterr()
    assert "the best learning-rate, 0.009, is among the largest" in shown.err
    assert "--extend 2 widens" in shown.err
    summary = pd.read_csv(out / "summary.csv")
    assert (summary.trials.tolist(), summary.extensions.tolist()) == ([3], [1])
    assert (out / "best.toml").read_text().startswith("# 3 trials each by test_loss")


# ----------------------------------------------------------------------- an early ranking that is wrong


class Slow:
    """A run whose loss falls at once with small steps, and far in the end with large ones."""

    def __init__(self, config: Any) -> None:
        self.config, self.diverged, self.server_round = config, False, 0

    def rows(self) -> Any:
        rate, last = self.config.options["learning-rate"], self.config.num_server_rounds
        for number in range(last + 1):
            self.server_round = number
            share = number / last
            yield {"round": number, "test_loss": rate * (1 - share) + (1 - rate) * share}


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_the_default_finds_what_halving_starves_and_halving_is_said_to_disagree(
    tmp_path: Path, sampler: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="needs the extra tune")
    from fedpisa.runs import simulation
    from fedpisa.tuning import cost

    monkeypatch.setattr(simulation, "Simulation", Slow)
    monkeypatch.setattr(cost, "sample_gradients", lambda simulation, row: 0)
    space = {"learning-rate": {"low": 0.05, "high": 0.95}}
    reached, said = {}, {}
    for pruner in ("none", "halving"):
        settings = {"trials": 20, "sampler": sampler, "pruner": pruner}
        file = write(tmp_path / f"{pruner}.toml", **SGD, search=space, tune=settings)
        assert main(["tune", str(file), "--out", str(tmp_path / pruner)]) == 0
        said[pruner] = capsys.readouterr().err
        frame = pd.read_csv(tmp_path / pruner / "trials.csv")
        reached[pruner] = frame[frame.state == "finished"].test_loss.min()
        if pruner == "halving":
            assert (frame.state == "pruned").sum() > 5
            summary = pd.read_csv(tmp_path / pruner / "summary.csv")
            assert summary.swapped_pairs.tolist() == summary.pairs.tolist() != [0]
    assert reached["none"] < 0.2
    assert reached["none"] < reached["halving"]
    assert "pairs of complete trials ended in another order than at round 1, by which" in said["halving"]
    assert "another order" not in said["none"]
