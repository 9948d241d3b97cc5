"""The configuration: its keys, the sources of values, and the errors for wrong ones."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpisa import components
from fedpisa.clients.pisa import PisaUpdate
from fedpisa.clients.preconditioners import Identity, RMSprop
from fedpisa.config import run as config_module
from fedpisa.config.flower import read_run_config
from fedpisa.config.overrides import parse_overrides
from fedpisa.config.run import RunConfig, load_config, read_toml, run_keys
from fedpisa.families import FAMILIES, available, keys_of
from fedpisa.simulation.federation import build_algorithm
from fedpisa.simulation.parts import build_model, load_dataset, split_dataset, with_model_of
from fedpisa.strategies.fedsgd import FedSGD
from fedpisa.strategies.optimizer import Optimizer
from fedpisa.strategies.pisa import Pisa
from fedpisa.strategies.sisa import Sisa
from fedpisa.studies.study import Study
from fedpisa.tuning.plan import Plan

# ---------------------------------------------------------------------------------- the option set

# Users' configurations rely on these names: a change needs a note in the changelog. New components need no
# line here. A key of a default part is listed with the part.
_SGD = "learning-rate momentum weight-decay batch-size drop-last local-epochs local-steps"
_PISA = """preconditioner rules sigma rho gamma gamma-every gamma-until mu batch-size drop-last batches-per-round
           local-steps gradient-reduction lambda absent weighting"""
OPTIONS = {
    "run": """algorithm dataset data-dir model num-clients partitioner seed num-server-rounds fraction-train
              task target target-measure
              validation-fraction early-stopping engine
              device dtype autocast augment crop-padding
              max-grad-norm micro-batch-size state-memory cohort-block eval-every
              eval-samples checkpoint-every target-accuracy
              exact-diagnostics per-client schedule schedule-keys warmup-rounds server-strategy differential-privacy
              pace availability dropout crash late nan corrupt min-replies round-timeout max-upload-norm
              num-cpus num-gpus ray-address""",
    "algorithm fedavg": _SGD,
    "algorithm fedsgd": """batch-size drop-last batches-per-round mu optimizer
                           learning-rate momentum optimizer-options.dampening weight-decay nesterov""",
    "algorithm localsgd": _SGD,
    "algorithm pisa": f"{_PISA} eta",
    "algorithm sisa": f"{_PISA} eta beta eps bias-correction amsgrad",
    "preconditioner identity": "eta",
    "preconditioner adagrad": "eta eps",
    "preconditioner rmsprop": "eta eps beta amsgrad",
    "preconditioner adam": "eta eps beta bias-correction amsgrad",
    "optimizer sgd": "learning-rate momentum dampening weight-decay nesterov",
    "dataset digits": "",
    "dataset a9a": "",
    "dataset quadratic": "dimension condition optimum-spread",
    "dataset mnist-t10k": "",
    "dataset text": "data-file tokens window",
    "dataset recipes": "recipes-file tokens window mask-padding",
    "dataset image-folder": "resize crop",
    "partitioner iid": "",
    "partitioner label-dirichlet": "dirichlet-alpha min-partition-size",
    "partitioner client-dirichlet": "dirichlet-alpha",
    "partitioner quantity-dirichlet": "dirichlet-alpha min-partition-size",
    "partitioner labels-per-client": "labels-per-client",
    "partitioner shards": "shards-per-client",
    "partitioner feature-noise": "noise-std",
    "partitioner natural": "",
    "model linear": "bias",
    "model logistic": "bias",
    "model mlp": "widths",
    "model tabular-mlp": "",
    "model simple-cnn": "",
    "model mlp-gan": "widths latent critic-sigmoid output-range",
    "model dcgan": "width latent critic-batchnorm critic-sigmoid output-range",
    "task gan": """objective critic-steps penalty weight-clip turns-within same-noise generator-average
                   fid-samples fid-features""",
    "model leaf-cnn": "",
    "model cifar-resnet34": "",
    "model cifar-vgg11": "",
    "model cifar-densenet121": "",
}


@pytest.mark.parametrize("component", OPTIONS)
def test_the_option_set_is_kept(component: str) -> None:
    family, _, name = component.partition(" ")
    keys = keys_of(available(family)[name]) if name else run_keys()
    assert {*keys} == {*OPTIONS[component].split()}


def test_a_key_has_one_meaning() -> None:
    """Two components of a flat configuration never use one key for different things."""
    families = ("algorithm", "dataset", "partitioner", "model")
    keys = {"run": {*run_keys()}} | {
        family: {key for component in available(family).values() for key in keys_of(component)}
        for family in families
    }
    # The keys of an algorithm's parts.
    keys["algorithm"] |= {
        key
        for family in {*FAMILIES} - {*families}
        for part in available(family).values()
        for key, described in keys_of(part).items()
        if not described.option
    }
    names = [name for own in keys.values() for name in own]
    assert sorted(names) == sorted({*names}), (
        f"shared: {sorted({name for name in names if names.count(name) > 1})}"
    )


def test_run_keys_are_explained() -> None:
    assert all(key.doc for key in run_keys().values())


# ---------------------------------------------------------------------------------- making and completing


def test_the_default_is_sisa_on_the_embedded_data() -> None:
    config = load_config()
    assert (config.algorithm, config.dataset, config.partitioner) == ("sisa", "digits", "label-dirichlet")
    assert config == RunConfig()
    assert build_algorithm(config) == Sisa()


def test_options_are_completed() -> None:
    options = RunConfig(algorithm="fedavg", options={"learning-rate": 1}).options
    assert options == {
        "learning-rate": 1.0,
        "momentum": 0.0,
        "weight-decay": 0.0,
        "batch-size": 32,
        "drop-last": False,
        "local-epochs": 1,
        "dirichlet-alpha": 0.5,
        "min-partition-size": 10,
    }


def test_a_configuration_cannot_be_changed() -> None:
    config = RunConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.options["sigma"] = 1  # type: ignore[index]


def test_equal_configurations_are_equal_and_have_equal_hashes() -> None:
    first = RunConfig(options={"sigma": 1})
    assert first == RunConfig(options={"sigma": 1.0})
    assert hash(first) == hash(RunConfig())
    assert first != RunConfig(options={"sigma": 2})


def test_names_may_be_written_the_python_way() -> None:
    assert RunConfig.from_mapping(
        {"num_clients": 3, "lambda_": 1, "gamma_every": 2}
    ) == RunConfig.from_mapping({"num-clients": 3, "lambda": 1, "gamma-every": 2})
    with pytest.raises(ValueError, match="key 'num-clients' is given twice"):
        RunConfig.from_mapping({"num_clients": 3, "num-clients": 3})


def test_none_stands_for_the_default() -> None:
    assert RunConfig.from_mapping(dict.fromkeys(["seed", "sigma", "model", "algorithm"])) == RunConfig()


def test_the_values_reach_the_algorithm() -> None:
    config = load_config(
        {
            "algorithm": "pisa",
            "preconditioner": "rmsprop",
            "beta": 0.9,
            "lambda": 1e-3,
            "batch-size": "full",
            "rho": 2,
        }
    )
    assert build_algorithm(config) == Pisa(
        PisaUpdate(RMSprop(beta=0.9), rho=2.0, batch_size="full"), lambda_=1e-3
    )


def test_the_chosen_optimizers_keys_are_keys() -> None:
    algorithm = build_algorithm(
        load_config({"algorithm": "fedsgd", "optimizer": "adam", "optimizer-options": {"betas": [0.5, 0.9]}})
    )
    assert isinstance(algorithm, FedSGD)
    assert algorithm.optimizer.name == "adam"
    assert algorithm.optimizer.options["betas"] == (0.5, 0.9)
    assert build_algorithm(load_config({"algorithm": "fedsgd"})).optimizer.options["lr"] == 0.1
    assert isinstance(algorithm.optimizer, Optimizer)


# ------------------------------------------------------------------------------------------- TOML


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"algorithm": "fedavg", "local-steps": 5, "target-accuracy": 0.9, "data-dir": 'a "b"\\c'},
        {"algorithm": "fedsgd", "optimizer": "adafactor"},
        {"algorithm": "fedsgd", "optimizer-options": {"dampening": 0.5}, "momentum": 0.9},
        {"model": "mlp", "widths": [3, 2], "dtype": "float64", "gamma-until": 7},
        {"dataset": "synthetic", "partitioner": "natural", "eta": math.inf},
    ],
)
def test_toml_round_trip(values: dict[str, object], tmp_path: Path) -> None:
    config = load_config(values)
    file = tmp_path / "config.toml"
    file.write_text(config.to_toml())
    assert load_config(file) == config
    assert load_config(str(file)).to_toml() == config.to_toml()
    assert load_config(config.to_mapping()) == config
    assert load_config(config) == config


def test_bad_files_are_explained_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    with pytest.raises(ValueError, match=r"cannot read the configuration '.*run.toml': No such file"):
        read_toml(file)
    file.write_text('algorithm = "sisa"\nsigma = \n')
    with pytest.raises(ValueError, match=r"run.toml' is not TOML: .* \(at line 2, column 9\)$"):
        read_toml(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"run.toml' is not TOML: "):
        read_toml(file)
    file.write_text("[run]\nsigma = 1.0\n")
    with pytest.raises(ValueError, match=r"\[run\] is a table, and keys are flat"):
        load_config(file)


# -------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("a=1", {"a": 1}),
        ("  a=1.5   b=true ", {"a": 1.5, "b": True}),
        ("a = 1 b= x", {"a": 1, "b": "x"}),
        ("eta=inf eps=1e-8", {"eta": math.inf, "eps": 1e-8}),
        ("algorithm=fedavg batch-size=full", {"algorithm": "fedavg", "batch-size": "full"}),
        ("data-dir=/a/b.c model=my_models:Net", {"data-dir": "/a/b.c", "model": "my_models:Net"}),
        ('data-dir=\'my data\' b="x = \\"y\\""', {"data-dir": "my data", "b": 'x = "y"'}),
        ("widths=[64, 32] c=[]", {"widths": [64, 32], "c": []}),
        ("file=a=b", {"file": "a=b"}),
        ("drop-columns=[\"a]\", 'b[c] \"'] x={a='}'}", {"drop-columns": ["a]", 'b[c] "'], "x": {"a": "}"}}),
    ],
)
def test_overrides(text: str, expected: dict[str, object]) -> None:
    assert parse_overrides(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "cannot read 'a': write key=value key=value"),
        ("a=1 b c=2", "cannot read 'b c=2'"),
        ("a=", "cannot read 'a='"),
        ("a=[1, 2", "cannot read 'a=[1, 2'"),
        ("a='x", 'cannot read "a=\'x"'),
        ("a='x'y", "cannot read \"a='x'y\""),
        ("a=[1 2]", "the value of 'a' is not TOML"),
        ("a=1 a=2", "key 'a' is given twice"),
        ("a=" + "9" * 5000, "the value of 'a' is not TOML"),
    ],
)
def test_bad_overrides_are_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse_overrides(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


_VALUES = (
    st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False)
    | st.booleans()
    | st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"]))
)


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True), _VALUES, max_size=4))
def test_what_is_written_as_toml_is_read_back(values: dict[str, object]) -> None:
    import tomli_w

    text = " ".join(tomli_w.dumps({name: value}).strip() for name, value in values.items())
    assert parse_overrides(text) == values


def test_overrides_take_precedence_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("sigma = 2\nrho = 3\nseed = 1\n")
    config = load_config(file, "sigma=4 seed=5")
    assert (config.options["sigma"], config.options["rho"], config.seed) == (4.0, 3.0, 5)
    assert load_config(file, {"sigma": 4, "seed": 5}) == config


# ---------------------------------------------------------------------------------------- changes


def test_replacing_a_component_drops_the_values_of_its_keys() -> None:
    config = load_config({"sigma": 0.5, "local-steps": 7, "dirichlet-alpha": 0.1, "seed": 4})
    fedavg = config.replace({"algorithm": "fedavg"})
    assert fedavg == load_config({"algorithm": "fedavg", "dirichlet-alpha": 0.1, "seed": 4})


def test_replacing_a_part_keeps_what_the_new_one_takes_too() -> None:
    config = load_config({"sigma": 0.5, "beta": 0.9, "bias-correction": "constant"})
    assert config.replace({"preconditioner": "rmsprop"}) == load_config(
        {"sigma": 0.5, "preconditioner": "rmsprop", "beta": 0.9}
    )
    plain = build_algorithm(load_config(config, "preconditioner=identity"))
    assert plain == Sisa(PisaUpdate(Identity(), sigma=0.5, rho=100.0))


def test_changes_are_checked() -> None:
    with pytest.raises(ValueError, match="key 'sigma' is not used by algorithm 'fedavg'"):
        RunConfig().replace({"algorithm": "fedavg", "sigma": 1})


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"sigm": 1},
            "unknown key 'sigm'; did you mean 'sigma'? (all keys: fedpisa list)",
        ),
        ({"num-client": 1}, "unknown key 'num-client'; did you mean 'num-clients' or 'per-client'?"),
        (
            {"algorithm": "fedavg", "sigma": 1},
            "key 'sigma' is not used by algorithm 'fedavg' (but by ",
        ),
        (
            {"preconditioner": "identity", "beta": 0.5},
            "key 'beta' is not used by preconditioner 'identity' (but by",
        ),
        (
            {"labels-per-client": 1},
            "key 'labels-per-client' is not used by partitioner 'label-dirichlet' (but by",
        ),
        ({"rounds": 3}, "unknown key 'rounds'; did you mean 'num-server-rounds' or 'warmup-rounds'?"),
        ({"lr": 0.3}, "unknown key 'lr': key 'learning-rate' is not used by algorithm 'sisa' (but by "),
        ({"algorithm": "fedavg", "lr": 0.3}, "unknown key 'lr'; did you mean 'learning-rate'?"),
        ({"clients": 3}, "unknown key 'clients'; did you mean 'num-clients' or 'per-client'?"),
        (
            {"algorithm": "fedavg", "epochs": 2},
            "unknown key 'epochs'; did you mean 'local-epochs' or 'local-steps'?",
        ),
        ({"bs": 3}, "unknown key 'bs'; did you mean 'batch-size'?"),
        ({"alpha": 3}, "unknown key 'alpha'; did you mean 'dirichlet-alpha'?"),
        ({"algorithm": "fedavg", "mu": 3}, "key 'mu' is not used by algorithm 'fedavg' (but by "),
        ({"optimizer": "adam"}, "key 'optimizer' is not used by algorithm 'sisa' (but by fedsgd)"),
        ({"dataset_name": "digits"}, "unknown key 'dataset-name'; did you mean 'dataset'?"),
        (
            {"sigma": 1e39},
            "key 'sigma' = 1e+39: it would be 0 or infinite in float32: take another value, or dtype",
        ),
        (
            {"algorithm": "fedavg", "learning-rate": 1e-50},
            "key 'learning-rate' = 1e-50: it would be 0 or infinite",
        ),
        (
            {"algorithm": "fedsgd", "optimizer": "adam", "optimizer-options": {"eps": 1e-50}},
            "'optimizer-options.eps'",
        ),
        ({"betas": [0.9, 0.9]}, "unknown key 'betas'; did you mean 'beta', 'eta' or 'task'?"),
        ({"widths": [3]}, "key 'widths' is used by the models mlp, mlp-gan: set the key 'model' too"),
        (
            {"model": "logistic", "widths": [3]},
            "key 'widths' is not used by model 'logistic' (but by mlp, mlp-gan)",
        ),
        (
            {"algorithm": "sica"},
            "unknown algorithm 'sica'; did you mean 'sisa' or 'nsisa'? (available: see",
        ),
        ({"dataset": "digit"}, "unknown dataset 'digit'; did you mean 'digits'?"),
        ({"partitioner": "label_dirichlet"}, "did you mean 'label-dirichlet', "),
        ({"model": "lgistic"}, "did you mean 'logistic'?"),
        ({"algorithm": "nsisa", "beta": 1}, "key 'beta' = 1: must be less than 1"),
        ({"preconditioner": "adm"}, "unknown preconditioner 'adm'; did you mean 'adam'?"),
        (
            {"algorithm": "fedsgd", "optimizer": "lbfgs"},
            "optimizer 'lbfgs' is left out: it evaluates the loss",
        ),
        ({"num-clients": 0}, "key 'num-clients' = 0: must be greater than or equal to 1"),
        ({"num-clients": 2.5}, "key 'num-clients' = 2.5: must be a valid integer"),
        ({"fraction-train": 0}, "key 'fraction-train' = 0: must be greater than 0"),
        ({"engine": "fast"}, "key 'engine' = 'fast': must be 'auto', 'loop', 'vmap' or 'ray'"),
        ({"seed": True}, "key 'seed' = true: must be a valid integer"),
        ({"algorithm": 3}, "key 'algorithm' = 3: must be a valid string"),
        ({"sigma": -1}, "key 'sigma' = -1: must be greater than 0"),
        ({"batch-size": "ful"}, "key 'batch-size' = 'ful': must be a valid integer or 'full'"),
        ({"options": {"sigma": 1}}, "[options] is a table, and keys are flat"),
    ],
)
def test_wrong_keys_and_values_are_explained_in_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_config(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_key_is_no_option() -> None:
    with pytest.raises(ValueError, match="key 'seed' belongs to the run"):
        RunConfig(options={"seed": 1})


# -------------------------------------------------------------------------------- a user's components

USER_CODE = """
from torch import nn
from fedpisa.families.data import load

def data(seed, *, temperature: float = 1.0):
    return load("digits")

def halves(labels, num_clients, rng, *, temperature: float = 2.0):
    return [range(i, len(labels), num_clients) for i in range(num_clients)]

def too_few(labels, num_clients, rng):
    return [range(3)]

def net(shape, num_outputs, *, dtype: str = "none", device: str = "none"):
    assert (dtype, device) == ("float64", "cpu")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_outputs))
"""


@pytest.fixture
def _user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_fedpisa_config.py").write_text(USER_CODE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("_user_module")
def test_a_shared_key_goes_to_all_that_take_it() -> None:
    both = {"dataset": "my_fedpisa_config:data", "partitioner": "my_fedpisa_config:halves"}
    with pytest.raises(
        ValueError, match=r"key 'temperature' has two defaults, 1.0 and, for partitioner .*, 2.0: set it"
    ):
        load_config(both)
    config = load_config({**both, "temperature": 3, "num-clients": 2})
    assert config.options["temperature"] == 3.0
    assert load_config(config.to_mapping()) == config
    data = load_dataset(config)
    assert [len(part) for part in split_dataset(config, data)[1]] == [719, 719]


@pytest.mark.usefixtures("_user_module")
def test_a_run_key_goes_to_a_component_that_takes_it() -> None:
    config = load_config({"model": "my_fedpisa_config:net", "dtype": "float64", "device": "cpu"})
    assert not {"dtype", "device"} & {*config.options}
    build_model(config, load_dataset(config))


@pytest.mark.usefixtures("_user_module")
def test_a_users_partitioner_is_checked() -> None:
    config = load_config({"partitioner": "my_fedpisa_config:too_few"})
    with pytest.raises(ValueError, match=r"my_fedpisa_config:too_few .*10 clients"):
        split_dataset(config, load_dataset(config))[1]


def test_an_algorithm_must_be_one() -> None:
    with pytest.raises(
        ValueError,
        match=r"'collections:OrderedDict' gave an object of type OrderedDict: it must give an Algorithm",
    ):
        build_algorithm(RunConfig(algorithm="collections:OrderedDict"))


# ---------------------------------------------------------------------------------- data and model


def test_data_partition_and_model_come_from_the_seed() -> None:
    config = load_config({"model": "mlp", "widths": [5], "num-clients": 4})
    data = load_dataset(config)
    parts, again = split_dataset(config, data)[1], split_dataset(config, data)[1]
    assert len(parts) == 4
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    other = split_dataset(config.replace({"seed": 1}), data)[1]
    assert not all(np.array_equal(a, b) for a, b in zip(parts, other, strict=True))
    first, second = (dict(build_model(config, data).named_parameters()) for _ in range(2))
    assert next(iter(first.values())).shape == (5, 64)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_without_a_model_the_datas_own_is_trained() -> None:
    config = RunConfig()
    data = load_dataset(config)
    named = with_model_of(config, data)
    assert named.model == data.default_model
    assert named == RunConfig(model=data.default_model)
    assert with_model_of(named, data) == named
    ours, theirs = (dict(build_model(c, data).named_parameters()) for c in (config, named))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_feature_noise_changes_what_the_clients_see() -> None:
    config = load_config({"partitioner": "feature-noise", "noise-std": 0.5, "num-clients": 3})
    data = load_dataset(config)
    seen, parts = split_dataset(config, data)
    noise = [float((seen.x_train - data.x_train)[part].std()) for part in parts]
    assert noise == pytest.approx([0.0, 0.25, 0.5], rel=0.02)
    assert np.array_equal(seen.x_test, data.x_test)
    assert split_dataset(RunConfig(), data)[0] is data


# ---------------------------------------------------------------------------------------- imports


def test_the_import_is_light() -> None:
    code = "import sys, fedpisa.config.run; print(sorted({'torch', 'flwr', 'pandas'} & {*sys.modules}))"
    root = Path(config_module.__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# ----------------------------------------------------------------------------------------- hints


@pytest.mark.parametrize("name", components.SYNONYMS)
def test_every_synonym_means_a_key_that_there_is(name: str) -> None:
    parts = [part for family in FAMILIES for part in available(family).values()]
    known = {*run_keys(), *(key for part in parts for key in keys_of(part))}
    assert name not in run_keys()
    assert set(components.SYNONYMS[name]) <= known
    assert name == components.kebab(name)


def test_a_hint_is_given_wherever_keys_are_read(tmp_path: Path) -> None:
    said = r"unknown key 'rounds'; did you mean 'num-server-rounds' or 'warmup-rounds'\? \(all keys: fedpisa list\)"
    (tmp_path / "run.toml").write_text("rounds = 3\n")
    for read in (
        lambda: load_config({"rounds": 3}),
        lambda: load_config(tmp_path / "run.toml"),
        lambda: load_config(None, "rounds=3"),
        lambda: RunConfig().replace({"rounds": 3}),
        lambda: RunConfig.from_mapping(read_run_config({"more": "rounds=3"})[1]),
        lambda: Study.from_mapping({"base": {"rounds": 3}}).runs()[0].config,
        lambda: Study.from_mapping({"sweep": {"rounds": [3]}}).runs()[0].config,
        lambda: Study.from_mapping({"variant": [{"name": "a", "rounds": 3}]}).runs()[0].config,
    ):
        with pytest.raises(ValueError, match=said):
            read()
    for search in ({"rounds": [1, 2]}, {"rounds": [1, 2], "sigma": [0.1, 0.2]}):
        with pytest.raises(ValueError, match="did you mean 'num-server-rounds'"):
            Plan.from_mapping({"tune": {"sampler": "grid"}, "search": search})


def test_infinite_hyper_parameters_and_those_of_float64_are_kept() -> None:
    assert load_config({"sigma": 1e39, "dtype": "float64"}).options["sigma"] == 1e39
    assert load_config({"synthetic-alpha": 0.0, "dataset": "synthetic"}).dataset == "synthetic"
    assert (
        load_config({"dirichlet-alpha": 1e50}).options["dirichlet-alpha"] == 1e50
    )  # partitions compute in float64


@pytest.mark.parametrize(
    "keys", [{"batch-size": 2**63}, {"seed": -(2**63) - 1}, {"model": "mlp", "widths": [8, 2**70]}]
)
def test_integers_beyond_64_bits_are_refused(keys: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be between -2\*\*63 and 2\*\*63 - 1"):
        RunConfig.from_mapping({"algorithm": "fedavg", "learning-rate": 0.1, **keys})
