"""Files are data: modules in results are never imported, modules in files only if the user allows it."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import fedpisa
from fedpisa.apps.node import _permission
from fedpisa.cli.main import main
from fedpisa.config.run import RunConfig, load_config, read_toml
from fedpisa.families import READ_ONLY, find, is_unread, permission, permitted
from fedpisa.families.permission import ENTRY_POINTS, Permission
from fedpisa.report import write_report

SMALL: dict[str, object] = {
    "algorithm": "fedavg",
    "model": "logistic",
    "num-server-rounds": 1,
    "num-clients": 3,
}
NAMED = (
    *("algorithm", "dataset", "partitioner", "model", "schedule", "server-strategy", "differential-privacy"),
    *("pace", "availability", "preconditioner", "optimizer"),
)
"""Keys that name a component."""
MODULE = """
import os
import subprocess
from functools import partial
from pathlib import Path
from subprocess import getoutput
from torch import nn
Path({marker!r}).touch()
number = 3
call = partial(getoutput, "touch {marker}")
class Thing: ...
class Net(nn.Sequential):
    def __init__(self, shape, num_outputs, *, width: int = 4):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_outputs))
def net(shape, num_outputs, *, width: int = 4):
    return Net(shape, num_outputs, width=width)
"""


class Planted:
    """A module on the path and outside configurations' folders; its import writes a file."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.marker, self.folder = name, folder.parent / f"{name}-was-imported", folder
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(MODULE.format(marker=str(self.marker)))

    @property
    def imported(self) -> bool:
        return self.marker.exists() or self.name in sys.modules


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """Return a function that writes a module into a folder other than the current one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [*sys.path])
    names: list[str] = []

    def planted(folder: str = "elsewhere", *, on_path: bool = True) -> Planted:
        name = f"planted_{abs(hash(request.node.name))}_{len(names)}"
        names.append(name)
        found = Planted(tmp_path / folder, name)
        if on_path:
            sys.path.insert(0, str(found.folder))
        return found

    yield planted
    for name in names:
        sys.modules.pop(name, None)


def rename(directory: Path, **keys: object) -> None:
    """Change keys in a result's configuration."""
    file = directory / "config.toml"
    file.write_text(tomli_w.dumps({**read_toml(file), **keys}))


# --------------------------------------------------------------------------------------------------- results


def test_what_a_result_names_is_never_imported(
    plant: Callable[..., Planted], capsys: pytest.CaptureFixture[str]
) -> None:
    """No command that reads results imports a component that any key names."""
    module = plant()
    for key in NAMED:
        algorithm = {"preconditioner": "sisa", "optimizer": "fedsgd"}.get(key, "fedavg")
        directory = Path("results") / key
        fedpisa.run({**SMALL, "algorithm": algorithm}, directory)
        rename(directory, **{key: f"{module.name}:net", "width": 7})
        result = fedpisa.load_result(directory)
        again = pickle.loads(pickle.dumps(result.config))
        assert again.stored
        assert again.to_mapping() == result.config.to_mapping()
        assert again.replace({"seed": 3}).options["width"] == 7
        assert result.plot() is not None
        assert not result.config.accepts("learning-rate-of-nothing")
    assert write_report(["results"], "report.html").page.exists()
    assert main(["report", "results"]) == 0
    assert main(["plot", "results"]) == 0
    assert not module.imported
    assert "cannot be read" not in Path("report.html").read_text()
    # Running the configuration needs permission.
    capsys.readouterr()
    config = fedpisa.load_result("results/model").config
    with pytest.raises(ValueError, match=f"names the module '{module.name}', which is not in .*allow"):
        fedpisa.run(config)
    assert main(["run", "--resume", "results/model", "-c", "num-server-rounds=2"]) == 2
    assert f"--allow {module.name}" in capsys.readouterr().err
    assert main(["run", "--resume", "results/model"]) == 0  # the run has ended, so nothing is run
    assert not module.imported


def test_a_study_of_finished_runs_is_only_read(
    plant: Callable[..., Planted], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = plant()
    tables = {"seeds": [0, 1], "base": SMALL, "variant": [{"name": "a"}, {"name": "b", "learning-rate": 0.1}]}
    file = Path("study.toml")
    file.write_text(tomli_w.dumps(tables))
    assert main(["compare", "study.toml", "--out", "out"]) == 0
    for config in Path("out").rglob("config.toml"):
        rename(config.parent, model=f"{module.name}:net", width=4)
    named = {**tables, "base": {**SMALL, "model": f"{module.name}:net"}}
    file.write_text(tomli_w.dumps(named))
    monkeypatch.setattr("fedpisa.studies.comparison.load_dataset", None)
    assert main(["compare", "study.toml", "--out", "out"]) == 0
    assert [one.result.status for one in fedpisa.load_study("out")] == ["finished"] * 4
    assert not module.imported
    # A changed key is refused. A further run would start, and its module is not allowed.
    file.write_text(tomli_w.dumps({**named, "base": {**named["base"], "num-clients": 4}}))  # type: ignore[dict-item]
    assert main(["compare", "study.toml", "--out", "out"]) == 2
    file.write_text(tomli_w.dumps({**named, "seeds": [0, 1, 2]}))
    assert main(["compare", "study.toml", "--out", "out"]) == 2
    assert not module.imported


def test_a_stored_configuration_has_the_same_keys(plant: Callable[..., Planted]) -> None:
    module = plant()
    keys = {**SMALL, "algorithm": "sisa", "preconditioner": "rmsprop", "width": 9, "schedule": "cosine"}
    full = load_config({**keys, "model": f"{module.name}:Net"})
    Path("config.toml").write_text(full.to_toml())
    stored = RunConfig.from_mapping(read_toml("config.toml"), stored=True)
    assert stored.to_mapping() == full.to_mapping()
    assert is_unread(stored.component("model"))
    assert stored.options_of_unread() == {"width"}
    assert load_config(stored).to_mapping() == full.to_mapping()  # this process's code has named the module
    other = stored.replace({"model": "mlp"})
    assert "width" not in other.options
    assert other.options["widths"] == [200, 200]


# ----------------------------------------------------------------------------------------------------- files


def commands(file: str) -> dict[str, list[str]]:
    return {
        "run": ["run", file, "--out", "out"],
        "partition": ["partition", file],
        "compare": ["compare", file, "--out", "out"],
        "tune": ["tune", file, "--out", "out"],
    }


def write_file(place: Path, command: str, model: str) -> Path:
    keys = {**SMALL, "model": model, "num-server-rounds": 1}
    tune = {"tune": {"trials": 1, "sampler": "random"}, "search": {"learning-rate": [0.1]}}
    tables = {"compare": {"base": keys}, "tune": {"base": keys, **tune}}.get(command, keys)
    place.mkdir(exist_ok=True, parents=True)
    (place / "file.toml").write_text(tomli_w.dumps(tables))
    return place / "file.toml"


@pytest.mark.parametrize("command", ["run", "partition", "compare", "tune"])
def test_a_file_names_modules_where_its_user_allows(
    command: str, plant: Callable[..., Planted], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = plant()
    file = write_file(tmp_path / "mailed", command, f"{module.name}:net")
    words = commands(str(file))[command]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert f"names the module '{module.name}', which is not in {file.parent} or {Path.cwd()}" in line
    assert f"add --allow {module.name}, or allow=['{module.name}'] in Python" in line
    assert not module.imported
    assert not Path("out").exists()
    assert main([*words, "--allow", module.name]) == 0
    assert module.imported
    announced = f"'{module.name}:net' imports the module '{module.name}' ({module.folder / module.name}.py)"
    assert capsys.readouterr().err.count(announced) == 1


@pytest.mark.parametrize("folder", ["here", "mailed"])
def test_its_own_folder_and_the_current_one_are_allowed(
    folder: str, plant: Callable[..., Planted], tmp_path: Path
) -> None:
    module = plant(folder, on_path=False)
    file = write_file(tmp_path / "mailed", "run", f"{module.name}:net")
    assert fedpisa.run(file).status == "finished"
    study = fedpisa.read_study(write_file(tmp_path / "mailed", "compare", f"{module.name}:net"))
    assert study.runs()[0].config.options["width"] == 4


def test_python_allows_by_an_argument(plant: Callable[..., Planted], tmp_path: Path) -> None:
    module = plant()
    name = f"{module.name}:net"
    file = write_file(tmp_path / "mailed", "run", name)
    for call in (load_config, fedpisa.run):
        with pytest.raises(ValueError, match=f"names the module '{module.name}'"):
            call(file)
    study = write_file(tmp_path / "studies", "compare", name)
    for call in (fedpisa.compare, lambda path: fedpisa.read_study(path).runs()[0].config):
        with pytest.raises(ValueError, match=f"names the module '{module.name}'"):
            call(study)
    assert not module.imported
    assert load_config(file, {"seed": 3}, allow=[module.name]).options["width"] == 4
    # A name given by an argument needs no permission.
    other = plant()
    assert load_config(file, {"model": f"{other.name}:net"}).options["width"] == 4


def test_installed_packages_and_the_standard_library_lie_in_no_folder(
    plant: Callable[..., Planted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No allowed folder, not even ``/``, covers installed packages or the standard library.

    A virtual environment is often below the project's folder.
    """
    monkeypatch.setattr("fedpisa.families.permission._GIVEN", set())  # other tests name torch.nn:Flatten
    plant()
    everything = Permission(folders=("/",))
    for name in ("os:popen", "subprocess:run", "numpy:zeros", "torch.nn:Flatten", "builtins:eval"):
        with pytest.raises(ValueError, match="names the module"):
            everything.require("model", name)
    with pytest.raises(ValueError, match="names the module 'fedpisa"):
        everything.require("dataset", "fedpisa.storage.files:replace_file")


@pytest.mark.parametrize(
    ("family", "attribute", "reason"),
    [
        ("dataset", "os.system", "is a built-in of Python: it must be a function or a class"),
        ("dataset", "os.popen", "is defined in 'os' and not in"),
        ("dataset", "subprocess.getoutput", "is defined in 'subprocess' and not in"),
        ("dataset", "getoutput", "is defined in 'subprocess' and not in"),
        ("dataset", "call", "is defined in 'subprocess' and not in"),
        ("dataset", "subprocess.Popen", "is defined in 'subprocess' and not in"),
        ("dataset", "Path.rmdir", "is defined in 'pathlib' and not in"),
        ("dataset", "net.__call__", "is a built-in of Python"),
        ("dataset", "net.__class__", "is a built-in of Python"),
        ("dataset", "number", "is a int: it must be a function or a class"),
        ("model", "Thing", "is a class: it must derive from torch.nn.modules.module.Module"),
        ("algorithm", "Net", "is a class: it must derive from fedpisa.strategies.base.Algorithm"),
        ("preconditioner", "Net", "is a class: it must derive from fedpisa.clients.preconditioners"),
        ("server-strategy", "Net", "is a class: it must derive from flwr."),
    ],
)
def test_an_attribute_is_what_its_family_needs(
    family: str, attribute: str, reason: str, plant: Callable[..., Planted]
) -> None:
    module = plant("here")
    with (
        permitted(Permission.of_file(Path.cwd() / "file.toml")),
        pytest.raises(ValueError, match=reason.replace(".", r"\.")) as caught,
    ):
        find(family, f"{module.name}:{attribute}")
    assert "\n" not in str(caught.value)


def test_a_command_is_no_data_set_wherever_it_is_named() -> None:
    with pytest.raises(ValueError, match="dataset 'os:system' is a built-in of Python"):
        fedpisa.run({"dataset": "os:system"})


@pytest.mark.parametrize("prefix", permission.RESERVED)
def test_reserved_prefixes_are_no_modules(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{prefix}.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"'{prefix}:x': the prefixes timm:, hf:, env: are reserved"):
        fedpisa.run({"model": f"{prefix}:x"})


def test_packages_that_declare_components_are_allowed(
    plant: Callable[..., Planted], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = plant()
    about = module.folder / f"{module.name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nmine = {module.name}\n")
    permission._declared.cache_clear()
    monkeypatch.setattr(permission, "_GIVEN", set[str]())
    try:
        assert load_config(write_file(Path("x"), "run", f"{module.name}:net")).options["width"] == 4
        with pytest.raises(ValueError, match="is not allowed here"), permitted(_permission("")):
            find("model", f"{module.name}:net")
    finally:
        permission._declared.cache_clear()


# ---------------------------------------------------------------------------------------------- other processes


@pytest.mark.slow
def test_workers_have_the_same_permission(plant: Callable[..., Planted], tmp_path: Path) -> None:
    near, far = plant("mailed", on_path=False), plant()
    tables = {
        "seeds": [0],
        "base": SMALL,
        "variant": [{"name": one.name, "model": f"{one.name}:net"} for one in (near, far)],
    }
    file = tmp_path / "mailed" / "study.toml"
    file.write_text(tomli_w.dumps(tables))
    stands = fedpisa.compare(file, "out", jobs=2, allow=[far.name])
    assert [stand.state for stand in stands] == ["finished", "finished"]


def test_nothing_is_imported_while_a_result_is_read(plant: Callable[..., Planted]) -> None:
    module = plant("here")
    with permitted(READ_ONLY):
        assert is_unread(find("model", f"{module.name}:net"))
        with pytest.raises(ValueError, match="this configuration was read from a result"):
            find("model", f"{module.name}:net").factory()
    assert not module.imported
