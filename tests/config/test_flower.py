"""The keys of `flwr run`."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import pytest

from fedpisa.config.flower import NodeSettings, read_run_config, to_run_config
from fedpisa.config.run import RunConfig

ROOT = Path(__file__).parents[2]
PYPROJECT = ROOT / "pyproject.toml"


def listed() -> dict[str, object]:
    config: dict[str, object] = tomllib.loads(PYPROJECT.read_text())["tool"]["flwr"]["app"]["config"]
    return config


def test_pyproject_lists_every_key_and_gives_none() -> None:
    """The table lists the same keys with and without the extras, because Flower refuses all others."""
    spec = importlib.util.spec_from_file_location("flower_keys", ROOT / "docs" / "flower_keys.py")
    assert spec is not None
    assert spec.loader is not None
    flower_keys = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(flower_keys)
    assert PYPROJECT.read_text(encoding="utf-8") == flower_keys.text(), "run: python docs/flower_keys.py"
    assert {"optimizer-options", "momentum", "sigma", "seed", "more"} <= listed().keys()
    assert not {"betas", "dampening"} & listed().keys()
    assert set(listed().values()) == {""}


def test_nothing_given_is_the_default_run() -> None:
    settings, keys = read_run_config(listed())  # type: ignore[arg-type]
    assert settings == NodeSettings()
    assert RunConfig.from_mapping(keys) == RunConfig()


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        RunConfig(algorithm="scaffold", num_clients=3, target_accuracy=0.9, dtype="float64"),
        RunConfig(dataset="synthetic", options={"batch-size": "full", "sigma": 0.5}),
    ],
    ids=str,
)
def test_a_configuration_arrives_as_it_was(config: RunConfig) -> None:
    settings = NodeSettings(out="somewhere", node_data="own", connect_timeout=5)
    there, keys = read_run_config(to_run_config(settings, config))
    assert (there, RunConfig.from_mapping(keys)) == (settings, config)


def test_lists_are_text_and_own_keys_come_together() -> None:
    values = {"widths": "[64, 32]", "more": "my-key=3 my-name='a b'", "sigma": ""}
    assert read_run_config(values)[1] == {"widths": [64, 32], "my-key": 3, "my-name": "a b"}


@pytest.mark.parametrize(
    ("values", "fix"),
    [
        ({"node-data": "mine"}, "set it to partition or own"),
        ({"out": "a", "resume": "b"}, "exclude each other"),
        ({"connect-timeout": 0}, "above 0"),
        ({"connect-timeout": "soon"}, "above 0"),
        ({"widths": "[64,"}, "write it as in TOML"),
    ],
)
def test_bad_values_are_named(values: dict[str, bool | int | float | str], fix: str) -> None:
    with pytest.raises(ValueError, match=fix):
        read_run_config(values)
