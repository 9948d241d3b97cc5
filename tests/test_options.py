"""The options of another library's class form one table in every description of a run."""

from __future__ import annotations

import shutil
import tomllib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

import fedpisa
from fedpisa.cli.main import main
from fedpisa.cli.options import read_keys
from fedpisa.components import Component, Key, Parameter, inspect_component
from fedpisa.config.flat_options import _warn_once
from fedpisa.config.flower import NodeSettings, read_run_config, to_run_config
from fedpisa.config.overrides import parse_overrides
from fedpisa.config.run import RunConfig, load_config, override
from fedpisa.families import build, keys_of, lookup, owners
from fedpisa.report.runs import Run, _telling
from fedpisa.studies.study import Study, read_study
from fedpisa.tuning.plan import Plan
from fedpisa.tuning.tune import tune

ADAM = {"algorithm": "fedsgd", "optimizer": "adam"}
CONFIG = RunConfig.from_mapping({**ADAM, "optimizer-options": {"betas": [0.5, 0.999]}})
OLD_RUN = Path(__file__).parent / "fixtures" / "old_run"


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    _warn_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        yield


# ------------------------------------------------------------------------------------------- one run


@pytest.mark.parametrize(
    "text",
    [
        "optimizer-options = {betas = [0.5, 0.999]}",
        "optimizer-options.betas = [0.5, 0.999]",
        '"optimizer-options.betas" = [0.5, 0.999]',
        "optimizer_options.betas = [0.5, 0.999]",
        "[optimizer-options]\nbetas = [0.5, 0.999]",
    ],
)
def test_a_file_has_a_table_or_options_one_by_one(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(f'algorithm = "fedsgd"\noptimizer = "adam"\n{text}\n')
    assert load_config(tmp_path / "run.toml") == CONFIG


@pytest.mark.parametrize(
    "text",
    [
        "optimizer-options={betas=[0.5,0.999]}",
        "optimizer-options = {betas = [0.5, 0.999]} num-clients=10",
        "optimizer-options.betas=[0.5,0.999]",
    ],
)
def test_the_command_line_takes_both(text: str) -> None:
    assert load_config(ADAM, text) == CONFIG
    with pytest.raises(ValueError, match="the value of 'optimizer-options' is not TOML"):
        parse_overrides("optimizer-options={betas}")


def test_options_are_a_mapping_that_cannot_be_changed() -> None:
    options: Any = CONFIG.options["optimizer-options"]
    assert options["betas"] == [0.5, 0.999]
    assert not {"betas", "optimizer-options.betas"} & CONFIG.options.keys()
    with pytest.raises(TypeError):
        options["betas"] = (0, 0)
    assert CONFIG.to_mapping()["optimizer-options.betas"] == [0.5, 0.999]
    assert tomllib.loads(CONFIG.to_toml())["optimizer-options"] == options
    assert RunConfig.from_mapping(CONFIG.to_mapping()) == CONFIG == RunConfig(
        algorithm="fedsgd", options=CONFIG.options
    )  # fmt: skip


def test_changes_of_one_option_leave_the_others() -> None:
    changed = CONFIG.replace({"optimizer-options.eps": 1e-3}).replace(
        {"optimizer_options": {"amsgrad": True}}
    )
    options: Any = changed.options["optimizer-options"]
    assert (options["betas"], options["eps"], options["amsgrad"]) == ([0.5, 0.999], 1e-3, True)
    assert CONFIG.replace({"optimizer": "sgd", "learning-rate": None}) == RunConfig(algorithm="fedsgd")
    assert CONFIG.accepts("optimizer-options.betas")
    assert not CONFIG.accepts("optimizer-options.dampening")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {**ADAM, "optimizer-options.beta": 1},
            "unknown option 'beta' of optimizer-options; did you mean 'betas'? (options: amsgrad, betas, ",
        ),
        (
            {**ADAM, "optimizer-options": {"momentum-decay": 1}},
            "unknown option 'momentum-decay' of optimizer-options (options: ",
        ),
        ({**ADAM, "optimizer-options": {"weight-decay": 1}}, "'weight-decay' of optimizer-options; it is a key"),
        ({**ADAM, "optimizer-options": 3}, "key 'optimizer-options' = 3: must be a table of amsgrad, betas"),
        ({**ADAM, "optimizer-options.betas": [1]}, "key 'optimizer-options.betas' = [1]: must be "),
        ({"optimizer-options.betas": [1, 1]}, "'optimizer-options' is not used by algorithm 'sisa' (but by fedsgd)"),
        ({"betas": [1, 1]}, "unknown key 'betas'; did you mean 'beta', 'eta' or 'task'?"),
        (
            {**ADAM, "optimizer-options": {"eps": 1}, "optimizer-options.eps": 2},
            "key 'optimizer-options.eps' is given twice",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        RunConfig.from_mapping(keys)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------- the old form


def test_flat_options_are_read_with_one_warning_that_says_the_new_line() -> None:
    with pytest.warns(FutureWarning) as caught:
        old = RunConfig.from_mapping({**ADAM, "betas": [0.5, 0.999], "amsgrad": True})
    assert [str(one.message) for one in caught] == [
        "betas, amsgrad are options and no longer flat: "
        "write optimizer-options = {betas = [0.5, 0.999], amsgrad = true}"
    ]
    new = str(caught[0].message).partition("write ")[2]
    assert load_config(ADAM, new) == old
    assert old.accepts("betas")


@pytest.mark.parametrize(
    "text", ["eps = 0.5\noptimizer-options.eps = 0.1", "optimizer-options = {eps = 0.1}\neps = 0.5"]
)
def test_a_file_that_gives_an_option_under_both_names_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f'algorithm = "fedsgd"\noptimizer = "adam"\n{text}\n')
    message = r"^eps = 0.5 and optimizer-options.eps = 0.1 set the same option: remove eps$"
    with pytest.raises(ValueError, match=message):
        load_config(file)
    study = tmp_path / "study.toml"
    study.write_text(f'[base]\nalgorithm = "fedsgd"\noptimizer = "adam"\n{text}\n')
    with pytest.raises(ValueError, match=r"set the same option: remove eps$"):
        read_study(study).runs()[0].config.to_mapping()


@pytest.mark.parametrize(
    ("below", "above"), [("eps", "optimizer-options.eps"), ("optimizer-options.eps", "eps")]
)
def test_an_override_replaces_an_option_under_either_name(below: str, above: str, tmp_path: Path) -> None:
    warnings.simplefilter("ignore", FutureWarning)
    expected = RunConfig.from_mapping({**ADAM, "optimizer-options.eps": 0.5})
    file = tmp_path / "run.toml"
    file.write_text(f'algorithm = "fedsgd"\noptimizer = "adam"\n{below} = 0.1\n')
    assert load_config(file, f"{above}=0.5") == expected
    assert load_config({**ADAM, below: 0.1}).replace({above: 0.5}) == expected
    variant = {"name": "v", above: 0.5}
    study = Study.from_mapping({"base": {**ADAM, below: 0.1}, "variant": [variant]}, "s")
    assert study.runs()[0].config == expected
    with pytest.raises(ValueError, match=r"are the same key: remove '(optimizer-options\.)?eps'$"):
        Study.from_mapping({"base": {**ADAM, below: 0.1}, "sweep": {above: [0.5]}}, "s")
    tables = {"base": {**ADAM, below: 0.1}, "tune": {"sampler": "grid"}, "search": {above: [0.5, 0.7]}}
    (subject,) = Plan.from_mapping(tables).subjects
    assert subject.config({above: 0.5}, 0) == expected.replace({"validation-fraction": 0.2})


def test_a_flat_key_is_no_old_name_where_it_is_valid() -> None:
    keys = {"algorithm": "sisa", "eps": 0.5, "optimizer-options.eps": 0.1}
    assert override(keys, {"eps": 0.7}) == {**keys, "eps": 0.7}


def test_an_old_run_is_read_and_resumed(tmp_path: Path) -> None:
    directory = tmp_path / "old"
    shutil.copytree(OLD_RUN / "fedsgd-adam", directory)
    with pytest.warns(
        FutureWarning, match=r"write optimizer-options = \{betas = \[0.5, 0.999\], eps = 1e-08, "
    ):
        before = fedpisa.load_result(directory).config
    assert before.options["optimizer-options"]["betas"] == [0.5, 0.999]  # type: ignore[index]
    assert main(["run", "--resume", str(directory), "-c", "num-server-rounds=6"]) == 0  # already warned
    assert_close(
        load_file(directory / "model.safetensors"), load_file(OLD_RUN / "fedsgd-adam-6-rounds.safetensors")
    )
    assert fedpisa.load_result(directory).config == before.replace({"num-server-rounds": 6})


# ------------------------------------------------------------------------------------ Flower, studies


def test_flowers_run_config_has_one_text() -> None:
    values = to_run_config(NodeSettings(), CONFIG)
    assert isinstance(values["optimizer-options"], str)
    assert not any("." in key for key in values)
    assert RunConfig.from_mapping(read_run_config(values)[1]) == CONFIG
    values["optimizer-options"] = "{betas = [0.5, 0.999]}"
    assert RunConfig.from_mapping(read_run_config(values)[1]) == CONFIG
    with pytest.raises(ValueError, match=r"'\{betas' is not a table .*: write it as in TOML"):
        read_run_config({"optimizer-options": "{betas"})


STUDY = """
[base]
algorithm = "fedsgd"
optimizer-options.eps = 1e-3
num-server-rounds = 1
model = "logistic"
[sweep]
optimizer-options.betas = [[0.5, 0.999], [0.9, 0.999]]
[[variant]]
name = "adam"
optimizer = "adam"
optimizer-options = {amsgrad = true}
"""


def test_a_study_takes_options_from_all_its_tables(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(STUDY)
    study = read_study(tmp_path / "s.toml")
    first, _ = study.runs()
    options: Any = first.config.options["optimizer-options"]
    assert (options["betas"], options["eps"], options["amsgrad"]) == ([0.5, 0.999], 1e-3, True)
    assert str(first.path) == "runs/adam/optimizer-options.betas=0.5-0.999/seed-0"
    assert Study.from_mapping(tomllib.loads(study.to_toml()), "s") == study


def test_options_are_tuned_and_the_best_are_written_as_tables(tmp_path: Path) -> None:
    tables = {
        **tomllib.loads(STUDY),
        "tune": {"sampler": "grid", "metric": "test_loss"},
        "search": {"optimizer-options": {"betas": [[0.5, 0.999], [0.1, 0.9]], "eps": [0.1, 1.0]}},
    }
    del tables["sweep"], tables["base"]["optimizer-options"]
    (standing,) = tune(Plan.from_mapping(tables), tmp_path)
    assert standing.best is not None
    assert len(standing.trials) == 4
    best = {name.partition(".")[2]: value for name, value in standing.best.keys.items()}
    (variant,) = tomllib.loads((tmp_path / "best.toml").read_text())["variant"]
    assert variant["optimizer-options"] == {"amsgrad": True, **best}
    written: Any = load_config(tmp_path / "best/adam/all.toml").options["optimizer-options"]
    assert {**written, **best} == written
    assert {"optimizer-options.betas", "optimizer-options.eps"} <= {
        *(tmp_path / "trials.csv").read_text().partition("\n")[0].split(",")
    }


def test_a_report_tells_variants_apart_by_an_option(tmp_path: Path) -> None:
    small = CONFIG.replace({"num-server-rounds": 1, "model": "logistic"})
    changes: list[dict[str, object]] = [{}, {"optimizer-options.eps": 0.1}]
    results = [fedpisa.run(small.replace(change), tmp_path / str(i)) for i, change in enumerate(changes)]
    runs = [Run(tmp_path / str(i), result, {}, "fedsgd") for i, result in enumerate(results)]
    assert _telling("fedsgd", [runs]) == ["optimizer-options.eps"]


# ------------------------------------------------------------------------------------ any such class


@dataclass(frozen=True)
class Tool:
    family: ClassVar[str] = "tool"
    name: str = "saw"
    options: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Bench:
    """A bench with two tools.

    Parameters
    ----------
    tool, local_tool
        What is used.
    """

    tool: Tool = Tool()
    local_tool: Tool = Tool()


def test_each_key_that_names_such_a_class_has_a_table_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    saw = Component(
        "tool", "saw", lambda **options: Tool("saw", tuple(options.items())),
        parameters=(
            Parameter("teeth", Key("teeth", int, 8, option=True)), Parameter("oil", Key("oil", float, 0.5)),
        ),
        read=lambda tool: dict(tool.options),
    )  # fmt: skip
    monkeypatch.setattr(lookup, "_FAMILIES", {"tool": lambda: [saw]})
    monkeypatch.setattr(lookup, "_collected", lookup._collected.__wrapped__)
    monkeypatch.setattr("fedpisa.families.builder.FAMILIES", ("tool",))
    bench = inspect_component("dish", "bench", Bench)
    assert [*keys_of(bench)] == [
        "tool", "tool-options.teeth", "oil", "local-tool", "local-tool-options.teeth"
    ]  # fmt: skip
    made = build(bench, {"tool-options.teeth": 3, "oil": 1})
    assert made == Bench(Tool("saw", (("teeth", 3), ("oil", 1.0))), Tool("saw", (("teeth", 8), ("oil", 1.0))))
    assert owners("oil") == {"tool": ["saw"]}
    assert owners("teeth") == {}


def test_options_of_several_arguments_are_merged() -> None:
    texts = [
        "optimizer-options={betas=[0.5,0.9]}",
        "optimizer_options={eps=1e-4} num_clients=3",
        "optimizer-options.eps=1e-3",
    ]
    assert read_keys(texts) == {
        "optimizer-options.betas": [0.5, 0.9], "optimizer-options.eps": 1e-3, "num-clients": 3,
    }  # fmt: skip
