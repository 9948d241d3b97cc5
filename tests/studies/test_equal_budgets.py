"""The studies of images, fine-tuning, GANs and control give all variants one budget, and clients have new text."""

from __future__ import annotations

import hashlib
import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpisa.config.run import read_toml
from fedpisa.datasets import text
from fedpisa.studies.study import read_study

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
FULL = {"vision/leaf": "vision/full"} | {
    f"fine_tuning/{name}": f"fine_tuning/full-{name}" for name in ("all-weights", "lora")
}
"""The full plan of each study."""
BASELINES = {f"fedsgd-{name}" for name in ("adam", "adamw", "adabelief", "momentum")} | {"fedavg", "scaffold"}


def read(name: str) -> Any:
    return read_toml(EXPERIMENTS / f"{name}.toml")


def searched(values: Any) -> dict[str, Any]:
    return {variant["name"]: variant["search"] for variant in values["variant"]}


GAN = ("gan/digits", "gan/finer")
FINER = ("vision/finer", "fine_tuning/finer", "control/finer")
CONTROL = ("control/pendulum", "control/full")


@pytest.mark.parametrize("name", [*FULL, *FULL.values(), *FINER, *GAN, *CONTROL])
def test_all_variants_have_as_many_trials_and_gradients(name: str) -> None:
    values, study = read(name), read_study(EXPERIMENTS / f"{name}.toml")
    assert values["tune"]["sampler"] == "grid"
    assert {math.prod(map(len, search.values())) for search in searched(values).values()} == {
        values["tune"]["trials"]
    }
    assert not {*values["tune"]["seeds"]} & {*study.seeds}
    keys: list[Any] = [run.keys for run in study.runs()]
    assert len({one["num-server-rounds"] * one.get("local-steps", 1) for one in keys}) == 1
    assert len({one["batch-size"] for one in keys}) == 1


@pytest.mark.parametrize(("name", "whole"), [*FULL.items(), ("language/roles", "language/full")])
def test_a_full_plan_has_more_rounds_seeds_and_variants(name: str, whole: str) -> None:
    short, full = read(name), read(whole)
    for variant, search in searched(short).items():
        assert searched(full)[variant] == search
    assert searched(full).keys() == BASELINES | {"sisa", "nsisa"}
    assert {*short["seeds"]} < {*full["seeds"]}
    assert full["base"]["num-server-rounds"] == 5 * short["base"]["num-server-rounds"]
    changed = {key for key in short["base"] if short["base"][key] != full["base"][key]}
    assert changed == {"num-server-rounds", "eval-every"}
    assert short["base"].keys() == full["base"].keys()


def test_the_full_plan_of_a_gan_has_more_trials_rounds_seeds_and_variants() -> None:
    short, full, study = read("gan/digits"), read("gan/full"), read_study(EXPERIMENTS / "gan" / "full.toml")
    for variant, search in searched(short).items():
        for key, values in search.items():
            assert {*values} < {*searched(full)[variant][key]}
    assert {math.prod(map(len, search.values())) for search in searched(full).values()} == {12}
    assert {*searched(short)} < {*searched(full)}
    assert {*short["seeds"]} < {*full["seeds"]}
    assert not {*full["tune"]["seeds"]} & {*full["seeds"]}
    assert {key for key in full["base"] if short["base"].get(key) != full["base"][key]} == {
        "num-server-rounds",
        "eval-every",
    }
    keys: list[Any] = [run.keys for run in study.runs()]
    gradients = {
        one["num-server-rounds"] * one.get("local-steps", 1) * (2 if one.get("turns-within") else 1)
        for one in keys
    }
    assert gradients == {5 * short["base"]["num-server-rounds"]}


def test_two_values_of_each_variant_of_a_gan_run_again_on_other_seeds() -> None:
    """All other keys are those of the reported runs, which have twice the rounds of the trials."""
    first, study = read("gan/digits"), read_study(EXPERIMENTS / "gan" / "again.toml")
    assert {*study.variants} == {f"{name}-{of}" for name in searched(first) for of in ("digits", "finer")}
    assert not {*study.seeds} & {*first["seeds"], *first["tune"]["seeds"]}
    for run in read_study(EXPERIMENTS / "gan" / "digits.toml").runs():
        for of in ("digits", "finer"):
            again = next(
                one.keys
                for one in study.runs()
                if one.variant == f"{run.variant}-{of}" and one.point == run.point
            )
            changed = {key for key in run.keys if run.keys[key] != again[key]}
            assert changed == {"seed", "num-server-rounds", "eval-every"}
            assert again["num-server-rounds"] == 2 * int(str(run.keys["num-server-rounds"]))
            own = {*searched(first)[run.variant], "validation-fraction"}
            assert {*again} - {*run.keys} == own


@pytest.mark.parametrize("name", CONTROL)
def test_all_variants_take_as_many_steps_in_environments(name: str) -> None:
    keys: list[Any] = [run.keys for run in read_study(EXPERIMENTS / f"{name}.toml").runs()]
    assert len({one["num-server-rounds"] / one["rollout-every"] for one in keys}) == 1
    assert len({one["num-server-rounds"] / one["eval-every"] for one in keys}) == 1


def test_the_full_plan_of_control_has_more_of_all() -> None:
    short, full = (read(name) for name in CONTROL)
    for variant, search in searched(short).items():
        for key, values in search.items():
            assert {*values} <= {*searched(full)[variant][key]}
    assert {*short["seeds"]} < {*full["seeds"]}
    assert {*short["sweep"]["gravity-spread"]} < {*full["sweep"]["gravity-spread"]}
    assert full["base"]["num-server-rounds"] == 4 * short["base"]["num-server-rounds"]


def test_a_model_is_pretrained_on_roles_that_are_not_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four roles with a letter each: the two largest are clients, and the others are pretrained on."""
    roles = {"A": "a" * 3000, "B": "b" * 2000, "C": "c" * 1500, "D": "d" * 1000}
    content = "\n\n".join(f"{name}:\n{speech}" for name, speech in roles.items()).encode()
    (tmp_path / "tinyshakespeare.txt").write_bytes(content)
    monkeypatch.setattr(text, "_MD5", hashlib.md5(content).hexdigest())
    monkeypatch.syspath_prepend(str(EXPERIMENTS / "fine_tuning"))
    data = importlib.import_module("pretrain").smaller_roles(data_dir=tmp_path, largest=2, roles=2)
    for x in (data.x_train, data.x_test):
        assert {data.vocabulary[token] for token in np.unique(x)} <= {"c", "d", "\n"}
    clients = text.tinyshakespeare(data_dir=tmp_path, num_clients=2)
    assert data.vocabulary == clients.vocabulary
    assert len(data.x_train) == 1350 // 64 + 900 // 64
