"""Preconditioners by parameter name: the same as each alone on its parameters, in every form of a configuration."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fedpisa
from fedpisa import families
from fedpisa.cli.main import main
from fedpisa.clients.by_name import ByName
from fedpisa.clients.pisa import PisaUpdate
from fedpisa.clients.preconditioners import Adagrad, Adam, Derivatives, Identity, NewtonSchulz, Spectral
from fedpisa.config.flower import NodeSettings, read_run_config, to_run_config
from fedpisa.config.run import RunConfig, load_config
from fedpisa.studies.study import Study
from fedpisa.tasks.layout import ParamLayout
from fedpisa.tuning.plan import Plan
from fedpisa.tuning.tune import tune

EVERY = sorted(families.available("preconditioner"))
SHAPES = st.lists(
    st.sampled_from([(), (1,), (3,), (2, 3), (3, 2), (1, 4), (2, 2, 2)]), min_size=1, max_size=5
)
SIGMA, RHO = 0.7, 2.0


# ------------------------------------------------------------------------------ against NumPy, by blocks


class Reference:
    """The steps of four preconditioners for one parameter, in NumPy."""

    def __init__(self, kind: str) -> None:
        self.kind, self.moment, self.count = kind, 0.0, 0

    def step(self, q: np.ndarray) -> np.ndarray:
        self.count += 1
        if self.kind == "spectral" and q.ndim > 1:
            u, s, v = np.linalg.svd(q.reshape(len(q), -1), full_matrices=False)
            return -((u * (s / (SIGMA + RHO * s))) @ v).reshape(q.shape)
        scale = np.abs(q)
        if self.kind == "identity":
            scale = np.full_like(q, 0.5)
        if self.kind == "adagrad":
            self.moment = self.moment + q * q
            scale = np.sqrt(self.moment) + 1e-3
        if self.kind == "adam":
            self.moment = 0.9 * self.moment + 0.1 * q * q
            scale = np.sqrt(self.moment / (1 - 0.9**self.count)) + 1e-2
        return -q / (SIGMA + RHO * scale)


KINDS = {
    "identity": Identity(eta=0.5),
    "adagrad": Adagrad(eps=1e-3),
    "adam": Adam(beta=0.9, eps=1e-2),
    "spectral": Spectral(),
}


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.data(), st.integers(0, 10**6))
def test_each_parameter_has_the_step_of_its_own_rule(shapes: Any, data: st.DataObject, seed: int) -> None:
    """Any split of the names gives the steps of independent rules, alone and stacked; the first match wins."""
    names = [f"layer{i}" for i in range(len(shapes))]
    kinds = [data.draw(st.sampled_from(sorted(KINDS))) for _ in names]
    last = data.draw(st.sampled_from(sorted(KINDS)))
    # A further expression, which comes later, matches all and takes nothing from the earlier ones.
    rules = {
        "|".join(f"^{n}$" for n, kind in zip(names, kinds, strict=True) if kind == wanted): KINDS[wanted]
        for wanted in dict.fromkeys(kind for kind in kinds if kind != last)
    }
    rule = ByName(rules={**rules, "layer": KINDS[last]}, otherwise=NewtonSchulz())
    layout = ParamLayout.of(
        (n, torch.empty(s, dtype=torch.float64)) for n, s in zip(names, shapes, strict=True)
    )
    rule.require_parameters(layout) if last in kinds else None
    rng = np.random.default_rng(seed)
    q_SKP = torch.from_numpy(rng.normal(size=(2, 3, layout.size)))

    def steps(q_KP: Tensor) -> Tensor:
        memory, found = rule.init(q_KP[0]), []
        for q_P in q_KP:
            derivatives = Derivatives(torch.zeros(()), q_P, layout=layout)
            q_P, memory = rule.direction(q_P, derivatives, memory)
            scale_P, memory = rule(q_P, derivatives, memory)
            found.append(rule.solve(q_P, scale_P, derivatives, SIGMA, RHO))
        return torch.stack(found)

    stacked = torch.func.vmap(steps)(q_SKP)
    for client, q_KP in enumerate(q_SKP):
        alone = [Reference(kind) for kind in kinds]
        for got_P, also_P, q_P in zip(steps(q_KP), stacked[client], q_KP, strict=True):
            wanted = [
                reference.step(part.numpy().reshape(shape)).ravel()
                for reference, part, shape in zip(alone, q_P.split(layout.sizes), layout.shapes, strict=True)
            ]
            np.testing.assert_allclose(got_P.numpy(), np.concatenate(wanted), rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(also_P.numpy(), got_P.numpy(), rtol=1e-9, atol=1e-12)


class Blocks(nn.Module):
    """Least squares in three blocks; no sample has features of two of them, so the blocks do not meet."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
        self.tall = nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
        self.bias = nn.Parameter(torch.ones(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.cat([parameter.reshape(-1) for parameter in self.parameters()])


@pytest.mark.parametrize(
    ("wide", "tall", "bias"),
    [("newton-schulz", "spectral", "adam"), ("fisher", "adagrad", "hutchinson"), ("hutchinson", "fisher", "rmsprop")],
)  # fmt: skip
@pytest.mark.parametrize("absent", ["keep", "fresh"])
def test_blocks_that_do_not_meet_are_trained_as_if_alone(
    lab: Any, wide: str, tall: str, bias: str, absent: str, engine: str
) -> None:
    rng, sizes = np.random.default_rng(4), (9, 12, 30)
    x = rng.normal(size=(51, 16)) * (np.repeat([0, 1, 2], [6, 6, 4]) == np.arange(51)[:, None] % 3)
    y, parts = rng.normal(size=51), lab.split(sizes)
    keys = {"batch-size": "full", "local-steps": 2, "absent": absent, "mu": 0.1, "lambda": 0.1}

    def train(**more: object) -> Any:
        algorithm = lab.Case("pisa", {**keys, **more}).build()
        return lab.Federation(
            algorithm, Blocks(), x, y, parts, engine, num_classes=None, fraction=0.7
        ).run(5)  # fmt: skip

    mixed = train(rules={"wi": wide, "al": tall, "as$": bias})
    for block, rule in enumerate((wide, tall, bias)):
        alone, mine = train(preconditioner=rule), slice(6 * block, 6 * block + 6)
        assert lab.relative(mixed.params[mine], alone.params[mine]) <= 1e-12
        for got, wanted in zip(mixed.states(), alone.states(), strict=True):
            assert lab.relative(got["dual"][mine], wanted["dual"][mine]) <= 1e-11


# ------------------------------------------------------------------------------------------- one rule


@pytest.mark.parametrize("pattern", [".*", ""])
@pytest.mark.parametrize("rule", EVERY)
def test_one_rule_for_all_is_that_preconditioner_bit_for_bit(
    lab: Any, rule: str, pattern: str, engine: str
) -> None:
    keys = {"local-steps": 2, "batches-per-round": 3, "gradient-reduction": "sum", "mu": 0.1}
    plain, named = (
        lab.make(lab.Case("pisa", {**keys, **more}).build(), engine, fraction=0.5).run(4)
        for more in ({"preconditioner": rule}, {"preconditioner": "adam", "rules": {pattern: rule}})
    )
    assert torch.equal(named.params, plain.params)
    for got, wanted in zip(named.states(), plain.states(), strict=True):
        assert all(torch.equal(got[name], value) for name, value in wanted.items() if value.dim())
    for one, other in zip(named.history, plain.history, strict=True):
        assert one.train_metrics == other.train_metrics


def test_memory_is_shared_by_name_and_counts_are_not() -> None:
    update = PisaUpdate(NewtonSchulz(), rules={"embed": Adam(), "head": Adam(beta=0.5)})
    assert {name: tuple(value.shape) for name, value in update.init(torch.zeros(5)).items()} == {
        "dual": (5,), "second-moment": (5,), "momentum": (5,), "count-0": (), "count-1": (), "count-2": (),
    }  # fmt: skip
    assert PisaUpdate(Adam(), rules=None).rule == Adam()


@pytest.mark.parametrize(
    ("rules", "exact"),
    [({"a": Adam()}, True), ({"a": NewtonSchulz()}, False), ({"a": Adam(), "b": NewtonSchulz()}, False)],
    ids=str,
)
def test_it_is_exact_if_all_are(rules: Any, exact: bool) -> None:
    assert ByName(rules=rules).exact == exact
    assert not ByName(rules=rules, otherwise=NewtonSchulz()).exact


# --------------------------------------------------------------------------------------------- configuration

RULES: Mapping[str, object] = {"bias|norm": {"name": "adam", "beta": 0.9}, r"^1\.": "adagrad"}
CONFIG = RunConfig.from_mapping(
    {"algorithm": "nsisa", "model": "mlp", "widths": [4], "num-server-rounds": 1, "rules": RULES}
)
FILE = 'algorithm = "nsisa"\nmodel = "mlp"\nwidths = [4]\nnum-server-rounds = 1\n'


@pytest.mark.parametrize(
    "text",
    [
        r"""rules = {"bias|norm" = {name = "adam", beta = 0.9}, '^1\.' = "adagrad"}""",
        "[rules]\n\"bias|norm\" = {name = 'adam', beta = 0.9}\n'^1\\.' = {name = 'adagrad', eps = 1e-8}",
        "[rules.'bias|norm']\nname = 'adam'\nbeta = 0.9\n[rules.'^1\\.']\nname = 'adagrad'",
    ],
)
def test_a_file_has_names_or_tables(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(FILE + text)
    assert load_config(tmp_path / "run.toml") == CONFIG
    if text.startswith("rules"):
        line = text.replace(" = ", "=")
        assert load_config(CONFIG.replace({"rules": None}), f"{line} sigma=8.0") == CONFIG


def test_every_form_of_a_run_keeps_all_keys_of_the_rules(tmp_path: Path) -> None:
    adagrad = {"name": "adagrad", "eta": inf, "eps": 1e-8}
    assert CONFIG.to_mapping()["rules"][r"^1\."] == adagrad  # type: ignore[index]
    assert RunConfig.from_mapping(tomllib.loads(CONFIG.to_toml())) == CONFIG
    assert RunConfig.from_mapping(read_run_config(to_run_config(NodeSettings(), CONFIG))[1]) == CONFIG
    text = to_run_config(NodeSettings(), CONFIG) | {"rules": """{"bias" = "adam"}"""}
    assert read_run_config(text)[1]["rules"] == {"bias": "adam"}
    assert fedpisa.run(CONFIG, tmp_path / "run").config == CONFIG
    assert fedpisa.load_result(tmp_path / "run").config == CONFIG
    empty = RunConfig.from_mapping({"rules": {}})
    assert empty == RunConfig()
    assert "rules" not in empty.to_toml()
    assert "rules" not in CONFIG.replace({"algorithm": "fedavg"}).options


def test_a_study_sweeps_and_tunes_rules(tmp_path: Path) -> None:
    base = {key: value for key, value in tomllib.loads(FILE).items() if key != "algorithm"}
    choices: list[object] = [{"bias": "adam"}, {"bias": {"name": "adam", "beta": 0.5}}]
    tables = {"base": base, "variant": [{"name": "v", "algorithm": "nsisa"}]}
    study = Study.from_mapping({**tables, "sweep": {"rules": choices}}, "s")
    one, other = study.runs()
    assert one.path != other.path
    assert other.config.options["rules"]["bias"]["beta"] == 0.5  # type: ignore[index]
    assert Study.from_mapping(tomllib.loads(study.to_toml()), "s") == study
    (tmp_path / "s.toml").write_text(study.to_toml())
    assert main(["compare", str(tmp_path / "s.toml"), "--out", str(tmp_path / "s")]) == 0
    assert main(["report", str(tmp_path / "s"), "--out", str(tmp_path / "r.html")]) == 0
    searched = {**tables, "tune": {"sampler": "grid", "metric": "test_loss"}, "search": {"rules": choices}}
    (standing,) = tune(Plan.from_mapping(searched), tmp_path / "t")
    assert standing.best is not None
    assert standing.best.keys["rules"] in choices
    (variant,) = tomllib.loads((tmp_path / "t/best.toml").read_text())["variant"]
    assert variant["rules"] in choices


MINE = """
from dataclasses import dataclass
import torch
from fedpisa.authoring import Preconditioner

@dataclass(frozen=True)
class Mine(Preconditioner):
    floor: float = 0.5
    def __call__(self, q_P, derivatives, memory):
        return q_P.abs() + self.floor, memory

@dataclass(frozen=True)
class Ones(Preconditioner):
    def init(self, params_P):
        return {"second-moment": torch.ones_like(params_P)}
    def __call__(self, q_P, derivatives, memory):
        return q_P.abs(), memory

def function():
    return 3
"""


def test_a_users_own_rule_is_imported_only_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_own_rule.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    rules = {"bias": {"name": "test_own_rule:Mine", "floor": 2.0}}
    result = fedpisa.run({**tomllib.loads(FILE), "rules": rules}, tmp_path / "run")
    assert result.config.options["rules"]["bias"]["floor"] == 2.0  # type: ignore[index]
    (tmp_path / "test_own_rule.py").unlink()
    monkeypatch.setattr(
        "sys.modules", {k: v for k, v in __import__("sys").modules.items() if k != "test_own_rule"}
    )
    read = fedpisa.load_result(tmp_path / "run").config
    assert read.options["rules"] == {"bias": {"name": "test_own_rule:Mine", "eta": inf, "floor": 2.0}}
    with pytest.raises(
        ValueError, match=r"rules of 'bias': preconditioner 'test_own_rule:Mine' cannot be imported"
    ):
        fedpisa.run({**tomllib.loads(FILE), "rules": rules})


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"(": "adam"}, r"rules: '(' is not a regular expression (missing ), unterminated subpattern"),
        ({"bias": "adm"}, "rules of 'bias': unknown preconditioner 'adm'; did you mean 'adam'?"),
        ({"embed": "adam"}, "rules: 'embed' matches no parameter (1.weight, 1.bias, 3.weight, 3.bias): correct or"),
        ({".": "adam", "bias": "fisher"}, "rules: 'bias' selects only parameters of earlier expressions (1.weight"),
        ({"bias": {"beta": 0.5}}, "rules of 'bias': a table needs name = ..., the preconditioner: adagrad, adam"),
        ({"bias": {"name": "adam", "beta": 2}}, "rules of 'bias': key 'beta' = 2: must be less than 1"),
        ({"bias": {"name": "adam", "bta": 2}}, "unknown key 'bta' for preconditioner 'adam'; did you mean 'beta'"),
        ({"bias": {"name": "adam", "eps": 1e-60}}, "it would be 0 or infinite in float32"),
        ({"bias": 3}, "key 'rules' = {'bias': 3}: must be a valid string or a table"),
        ("adam", "key 'rules' = 'adam': must be a table"),
        ({"bias": "test_own_rule:function"}, "rules: the rule of 'bias' is a int: give an instance of a subclass"),
        (
            {"bias": "test_own_rule:Ones"},
            "rules: ones and newton-schulz keep vectors of the name 'second-moment' with different initial values",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(
    rules: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_own_rule.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        fedpisa.run({**tomllib.loads(FILE), "rules": rules})
    assert "\n" not in str(caught.value)


def test_other_algorithms_have_no_rules() -> None:
    message = r"^key 'rules' is not used by algorithm 'fedavg' \(but by nsisa, pisa, sisa, spectral-pisa\)$"
    with pytest.raises(ValueError, match=message):
        RunConfig.from_mapping({"algorithm": "fedavg", "rules": {"bias": "adam"}})
