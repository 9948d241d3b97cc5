"""The losses of critics and generators, their models, and the distances of generated samples."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from matplotlib.image import imread
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.inception import BasicConv2d, InceptionE

import fedpisa
from fedpisa.clients.base import MiniBatches
from fedpisa.clients.gradients import AutogradGradient
from fedpisa.config.run import RunConfig
from fedpisa.datasets.base import Dataset
from fedpisa.families import models
from fedpisa.models.gan import dcgan
from fedpisa.plots.images import image_grid
from fedpisa.report import write_report
from fedpisa.rng import mix, normal, uniform
from fedpisa.simulation.federation import Federation
from fedpisa.simulation.stacked.gradients import StackedGradient
from fedpisa.tasks import sample_quality
from fedpisa.tasks._inception import inception, inception_features
from fedpisa.tasks.frechet import frechet_distance, gaussian_distance, kernel_distance
from fedpisa.tasks.gan import Adversarial, Gan
from fedpisa.tasks.sample_quality import SampleQuality, own_features
from fedpisa.tuning.plan import Plan
from tests.algorithms import Case, fill, make, relative
from tests.players import game, images, small
from tests.runs.interrupted import cut_short

# ------------------------------------------------------------------------------------------ losses


def by_hand(
    module: nn.Module, x: Tensor, key: Tensor, player: str, objective: str, penalty: float
) -> list[Tensor]:
    """Return the gradient of one mini-batch's mean loss, written as in a script of PyTorch."""
    z = normal(mix(key, 1), len(x), module.latent, dtype=x.dtype)
    if player == "generator":
        scores = module.critic(module.generator(z))[:, 0]
        loss = F.softplus(-scores).mean() if objective == "non-saturating" else -scores.mean()
        return list(torch.autograd.grad(loss, list(module.generator.parameters())))
    fake = module.generator(z).detach()
    fakes, reals = module.critic(fake)[:, 0], module.critic(x)[:, 0]
    if objective == "non-saturating":
        loss = F.softplus(-reals).mean() + F.softplus(fakes).mean()
    else:
        loss = fakes.mean() - reals.mean()
    if objective == "wgan-gp":
        t = uniform(mix(key, 2), len(x), *(1,) * (x.dim() - 1), dtype=x.dtype)
        between = (t * x + (1 - t) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(module.critic(between).sum(), between, create_graph=True)
        loss = loss + penalty * ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()
    return list(torch.autograd.grad(loss, list(module.critic.parameters())))


@pytest.mark.parametrize("player", ["critic", "generator"])
@pytest.mark.parametrize("objective", ["wgan", "wgan-gp", "non-saturating"])
def test_gradients_are_those_of_a_script(objective: str, player: str) -> None:
    module = small().double()
    task = Gan(module, Adversarial(objective, penalty=3.0))  # type: ignore[arg-type]
    x, key = torch.from_numpy(images()["x"][:6]), torch.tensor(77)
    wanted = by_hand(module, x, task.noise_key(key, 0), player, objective, 3.0)  # type: ignore[arg-type]
    wanted_P = torch.cat([part.flatten() for part in wanted])
    who = next(one for one in task.players if one.name == player)
    params_P = task.initial_params()
    weight = torch.full((1, 6), 1 / 6, dtype=torch.float64)
    batch = MiniBatches(x[None], torch.zeros(1, 6), weight, key)
    for kind in (AutogradGradient, StackedGradient):
        gradient = kind(task, torch.zeros(0, dtype=torch.float64)).of(who, params_P)
        found_P = gradient(who.of(params_P), batch)[1]
        assert relative(found_P, wanted_P) <= 1e-12
    padded = MiniBatches(
        torch.cat([x, x[:1] * 0])[None], torch.zeros(1, 7), torch.cat([weight, weight[:, :1] * 0], 1), key
    )
    gradient = StackedGradient(task, torch.zeros(0, dtype=torch.float64)).of(who, params_P)
    assert relative(gradient(who.of(params_P), padded)[1], wanted_P) <= 1e-12


def test_engines_agree_on_images() -> None:
    def module() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return dcgan((1, 8, 8), width=2, latent=3, critic_batchnorm=True, critic_sigmoid=True)

    rng = np.random.default_rng(0)
    data = {**images(), "x": rng.normal(size=(27, 1, 8, 8))}
    runs = [
        make(
            Case("sisa", {}).build(), engine, module=module, task_of=game(objective="non-saturating"), **data
        )
        for engine in ("loop", "vmap")
    ]
    assert relative(*(run.run(5).params for run in runs)) <= 1e-12


class InPlace(nn.Module):
    """A critic that writes into its input, and has one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.first, self.last = nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 1)
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        x.mul_(0.5).sub_(1.0)
        return self.last(self.again(self.first(self.flat(x)).tanh()).tanh())


class OutOfPlace(InPlace):
    """The same without writing."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        return super().forward(x.clone())


@pytest.mark.parametrize("objective", ["wgan-gp", "non-saturating"])
def test_a_critic_may_write_into_its_input_and_share_layers(objective: str) -> None:
    weight, key = torch.full((1, 6), 1 / 6, dtype=torch.float64), torch.tensor(7)
    found = []
    for kind in (OutOfPlace, InPlace):
        module = small().double()
        module.critic = fill(kind(), 1).double()
        task = Gan(module, Adversarial(objective))  # type: ignore[arg-type]
        x, none_Q = torch.from_numpy(images()["x"][:6]), torch.zeros(0, dtype=torch.float64)
        before, params_P = x.clone(), task.initial_params()
        batch = MiniBatches(x[None], torch.zeros(1, 6), weight, key)
        gradients = [
            engine(task, none_Q).of(who, params_P)(who.of(params_P), batch)[1]
            for who in task.players
            for engine in (AutogradGradient, StackedGradient)
        ]
        measures = task.evaluate(params_P, none_Q, x, torch.zeros(6))
        assert torch.equal(x, before)
        found.append((torch.cat(gradients), measures))
    assert relative(found[0][0], found[1][0]) <= 1e-12
    assert found[0][1] == found[1][1]


def test_a_game_in_pieces_runs_on_both_engines() -> None:
    keys = {**RUN, "fid-samples": 0, "micro-batch-size": 3}
    one, other = (fedpisa.run({**keys, "engine": engine}).parameters for engine in ("loop", "vmap"))
    assert all(np.array_equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize(("side", "deepest"), [(28, 7), (32, 4), (64, 4)])
def test_dcgan_halves_images(side: int, deepest: int) -> None:
    model = dcgan((3, side, side), width=4, latent=5, output_range=(-0.5, 2.0))
    made = model.generator(torch.randn(3, 5))
    assert made.shape == (3, 3, side, side)
    assert made.min() >= -0.5
    assert made.max() <= 2.0
    assert model(made).shape == (3, 1)
    assert model.critic[-1].in_features % deepest**2 == 0


def test_weights_depend_on_the_seed_alone() -> None:
    first, second, other = (models.build("dcgan", (1, 28, 28), 2, seed, width=4) for seed in (0, 0, 1))
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(one, two) for one, two, _ in pairs)
    assert not all(torch.equal(one, three) for one, _, three in pairs)


def test_a_shape_without_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="take mlp-gan"):
        dcgan((1, 9, 9))


# ------------------------------------------------------------------------------------------ distances


def test_the_frechet_distance_of_gaussians() -> None:
    """Commuting covariances have ``||m - m'||^2 + sum (s - s')^2``; others are compared with SciPy's root."""
    rng = np.random.default_rng(0)
    turn = torch.from_numpy(np.linalg.qr(rng.normal(size=(5, 5)))[0])
    s, t = (torch.from_numpy(rng.uniform(0, 3, 5)) for _ in range(2))
    m, o = (torch.from_numpy(rng.normal(size=5)) for _ in range(2))
    wanted = float((m - o).square().sum() + (s - t).square().sum())
    assert abs(gaussian_distance(m, torch.diag(s) @ turn, o, torch.diag(t) @ turn) - wanted) <= 1e-9
    assert gaussian_distance(m, torch.diag(s), m, torch.diag(s)) <= 1e-9
    a, b = (torch.from_numpy(rng.normal(size=(n, 5)) @ rng.normal(size=(5, 5))) for n in (40, 60))
    left, right = (np.cov(x.numpy(), rowvar=False) for x in (a, b))
    root = scipy.linalg.sqrtm(left @ right).real
    wanted = float(((a.mean(0) - b.mean(0)) ** 2).sum()) + np.trace(left + right - 2 * root)
    assert abs(frechet_distance(a, b) - wanted) <= 1e-9


def test_a_set_is_at_distance_zero_from_itself() -> None:
    rng = np.random.default_rng(1)
    for shape in ((30, 5), (4, 9)):  # the second covariance has no full rank
        a = torch.from_numpy(rng.normal(size=shape))
        assert frechet_distance(a, a) <= 1e-9
        assert frechet_distance(a, a + 2.0) == pytest.approx(4.0 * shape[1], abs=1e-9)
    with pytest.raises(ValueError, match="two samples"):
        frechet_distance(a[:1], a)


def test_the_kernel_distance_is_the_sum_over_pairs() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(6, 3)), rng.normal(0.5, 1, size=(8, 3))

    def mean(one: Any, other: Any, same: bool) -> float:
        found = [
            (p @ q / 3 + 1) ** 3 for i, p in enumerate(one) for j, q in enumerate(other) if not same or i != j
        ]
        return float(np.mean(found))

    wanted = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert kernel_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(wanted, rel=1e-12)


def test_own_features_tell_real_samples_from_noise() -> None:
    """Two halves of the digits are near each other, noise is far; and the features do not depend on generators."""
    data = fedpisa.load_config({"dataset": "digits"})
    from fedpisa.simulation.parts import load_dataset

    digits = load_dataset(data)
    x, y = torch.from_numpy(digits.x_train), torch.from_numpy(digits.y_train)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    features = own_features(x, y, 10)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(features(x[:9]), own_features(x, y, 10)(x[:9]))
    sample_quality._KEPT.clear()  # what is kept has the same numbers as what is trained again
    assert torch.equal(features(x[:9]), own_features(x, y, 10)(x[:9]))
    test = torch.from_numpy(digits.x_test)
    near, far = (
        frechet_distance(features(test), features(other))
        for other in (x[: len(test)], torch.rand(test.shape, generator=torch.Generator().manual_seed(0)))
    )
    assert 10 * near < far


RUN: dict[str, object] = {
    "task": "gan",
    "model": "mlp-gan",
    "widths": [8],
    "latent": 3,
    "num-clients": 3,
    "num-server-rounds": 2,
    "fid-samples": 50,
}


def test_features_are_trained_once_for_the_same_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed pixel or class is another data set; the oldest of too many is forgotten."""
    trained: list[tuple[Tensor, Tensor]] = []

    def train(x: Tensor, y: Tensor, num_classes: int) -> torch.nn.Module:
        trained.append((x, y))
        return torch.nn.Flatten()

    monkeypatch.setattr(sample_quality, "_KEPT", {})
    monkeypatch.setattr(sample_quality, "_trained", train)
    x, y = torch.zeros(4, 1, 8, 8), torch.arange(4)
    for pixel in [0.0, 0.0, 1.0, 0.0]:
        own_features(x + pixel * torch.eye(8), y, 4)
    assert len(trained) == 2
    own_features(x, y.flip(0), 4)
    assert len(trained) == 3
    for pixel in range(2, 9):
        own_features(x + pixel, y, 4)
    assert len(sample_quality._KEPT) == 8
    own_features(x, y, 4)
    assert len(trained) == 11


def test_a_run_reports_own_distances_by_their_name() -> None:
    result = fedpisa.run(RUN)
    assert {"test_fid_own", "test_kid_own", "test_loss"} <= {*result.history}
    assert "test_fid" not in result.history
    loop = fedpisa.run({**RUN, "engine": "loop"}).history["test_fid_own"]
    assert loop.to_numpy() == pytest.approx(result.history["test_fid_own"].to_numpy(), rel=1e-3)


def test_features_need_classes_or_a_file() -> None:
    with pytest.raises(ValueError, match="no classes of training samples"):
        fedpisa.run({**RUN, "dataset": "quadratic", "partitioner": "natural"})
    with pytest.raises(ValueError, match="without fid-samples"):
        fedpisa.run({**RUN, "fid-samples": 0, "fid-features": "inception.pth"})


def test_generated_samples_depend_on_the_key_alone() -> None:
    task = Gan(small(), Adversarial())
    start, key = task.initial_params(), torch.tensor(5)
    many = task.generated(start, torch.zeros(0), 9, key)
    assert torch.equal(many[:4], task.generated(start, torch.zeros(0), 4, key))
    assert not torch.equal(many, task.generated(start, torch.zeros(0), 9, torch.tensor(6)))
    first = task.evaluate(start, torch.zeros(0), many, torch.zeros(9))
    torch.manual_seed(3)
    assert task.evaluate(start, torch.zeros(0), many, torch.zeros(9)) == first


def test_a_run_and_its_report_show_images(tmp_path: Path) -> None:
    """The same model gives the same picture, after an interruption too, and the report has the picture."""
    config = {**RUN, "fid-samples": 0, "checkpoint-every": 1}
    fedpisa.run(config, tmp_path / "run")
    content = (tmp_path / "run" / "samples.png").read_bytes()
    assert imread(io.BytesIO(content), format="png").shape[:2] == (8 * 33 - 1, 8 * 33 - 1)
    fedpisa.run(resume=cut_short(config, tmp_path / "cut", 1))
    assert (tmp_path / "cut" / "samples.png").read_bytes() == content
    write_report([tmp_path / "run"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert base64.b64encode(content).decode() in page
    assert "critic: primal residual" in page
    assert "ranked by the critic&#39;s loss" in page
    fedpisa.run({"model": "logistic", "num-server-rounds": 1}, tmp_path / "other")
    assert not (tmp_path / "other" / "samples.png").exists()


@pytest.mark.parametrize("metric", ["validation_loss", "best_test_loss"])
def test_a_search_does_not_take_the_critics_loss(metric: str) -> None:
    """The critic's loss is lowest where the generator is poor."""
    base = {key: value for key, value in RUN.items() if key != "fid-samples"}
    tables: dict[str, Any] = {
        "name": "game",
        "seeds": [0],
        "tune": {"trials": 1, "metric": metric, "seeds": [2]},
        "base": base,
        "search": {"learning-rate": [0.01, 0.1]},
        "variant": [{"name": "sgd", "algorithm": "fedsgd"}],
    }
    with pytest.raises(ValueError, match="is the critic's loss"):
        Plan.from_mapping(tables)
    tables |= {"base": RUN, "tune": {**tables["tune"], "metric": "validation_fid_own"}}
    assert not Plan.from_mapping(tables).metric.higher_is_better


def test_a_grid_shows_each_image_in_its_place() -> None:
    images_ = np.zeros((3, 1, 32, 32))
    images_[1] = 5.0
    images_[2] = np.nan
    found = imread(io.BytesIO(image_grid(images_, np.array([0.0]), np.array([5.0]))), format="png")
    assert found.shape[:2] == (65, 65)
    assert found[:32, 33:, 0].min() == 1.0
    assert found[:32, :32, :3].max() == found[33:, :, :3].max() == 0.0


def test_inception_is_that_of_tensorflow(tmp_path: Path) -> None:
    """Averages leave the padding out, and the last block takes maxima; the weights have torchvision's names."""
    model: Any = inception()
    x = torch.rand(2, 192, 9, 9, generator=torch.Generator().manual_seed(0))
    found = model.Mixed_5b(x)[:, -32:]
    pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    assert relative(found, BasicConv2d.forward(model.Mixed_5b.branch_pool, pooled)) <= 1e-6
    x = torch.rand(2, 2048, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.Mixed_7c(x)[:, -192:], model.Mixed_7c.branch_pool(F.max_pool2d(x, 3, 1, 1)))
    assert torch.equal(model.Mixed_7c(x)[:, :-192], InceptionE.forward(model.Mixed_7c, x)[:, :-192])
    state = model.state_dict()
    save_file(state, tmp_path / "inception.safetensors")
    image, bounds = torch.rand(1, 1, 8, 8), (torch.zeros(1), torch.ones(1))
    features = inception_features(str(tmp_path / "inception.safetensors"), *bounds)
    assert features(image).shape == (1, 2048)
    assert torch.equal(features(image), features(image))
    assert not torch.equal(features(image), features(1 - image))


def test_the_range_of_pixels_is_that_of_all_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which set is compared first, such as one client's images, changes nothing."""
    ranges: list[tuple[Tensor, Tensor]] = []

    def features(path: str, low_C: Tensor, high_C: Tensor) -> Any:
        ranges.append((low_C, high_C))
        return lambda x: ((x - low_C[:, None, None]) / (high_C - low_C)[:, None, None]).clamp(0, 1).flatten(1)

    monkeypatch.setattr("fedpisa.tasks._inception.inception_features", features)
    found = []
    for first in (0, 1):
        federation = Federation(RunConfig.from_mapping({**RUN, "fid-features": "inception.safetensors"}))
        task, x = federation.task, federation.test.x
        dark = x[x.amax((1, 2, 3)) < x.max()][:20]
        sets = {0: x, 1: dark}
        values = {k: task.quality(sets[k], x[:8] / 2) for k in (first, 1 - first)}
        found.append([values[0], values[1]])
    assert found[0] == found[1]
    wanted = x.min(), x.max()
    assert all(
        float(bound) == float(one) for bounds in ranges for bound, one in zip(bounds, wanted, strict=True)
    )
    assert len(ranges) == 2


def test_a_wrong_file_of_weights_is_named(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    reasons = {
        "none.pth": "pickled weights are not read",
        "none.safetensors": "cannot be read",
        "other.safetensors": "has no 'Conv2d_1a_3x3.conv.weight'",
    }
    for name, reason in reasons.items():
        keys = {"fid-features": str(tmp_path / name), "num-server-rounds": 1}
        with pytest.raises(ValueError, match=reason) as error:
            fedpisa.run({**RUN, **keys})
        assert "\n" not in str(error.value)


def two_inputs() -> Dataset:
    """Return samples of two features each."""
    x, y = {"a": np.zeros((6, 2)), "b": np.zeros((6, 3))}, np.arange(6) % 2
    return Dataset.of("two", (x, y), (x, y), num_classes=2)


def small_images() -> Dataset:
    """Return images of 2x2 pixels."""
    x, y = images()["x"].astype(np.float32), np.arange(27) % 2
    return Dataset.of("images", (x, y), (x, y), num_classes=2)


class TakesAll(nn.Module):
    """Networks of your own; the critic alone could take any features."""

    def __init__(self) -> None:
        super().__init__()
        self.latent, inner = 3, small()
        self.critic, self.generator = inner.critic, inner.generator

    def forward(self, x: Tensor | None = None, **features: Tensor) -> Tensor:
        return features["a"][:, :1] if x is None else self.critic(x)


def own_networks(shape: Any) -> nn.Module:
    """Return such networks."""
    return TakesAll()


@pytest.mark.parametrize("dataset", ["two_inputs", "small_images"])
def test_a_model_of_your_own_takes_one_array(dataset: str) -> None:
    own = {key: value for key, value in RUN.items() if key not in ("widths", "latent")}
    keys = {"dataset": f"{__name__}:{dataset}", "model": f"{__name__}:own_networks", "partitioner": "iid"}
    if dataset == "small_images":
        assert fedpisa.run({**own, **keys, "num-clients": 2}).status == "finished"
    else:
        with pytest.raises(ValueError, match="task 'gan' takes one array of features"):
            fedpisa.run({**own, **keys, "num-clients": 2})


def test_the_features_of_real_samples_are_computed_once() -> None:
    sets: list[Tensor] = []

    def features(x: Tensor) -> Tensor:
        sets.append(x)
        return x.flatten(1)

    quality = SampleQuality(4, True, lambda: features)
    real, other = torch.arange(12.0).view(6, 2), torch.arange(8.0).view(4, 2)
    values = [quality(real[:], other) for _ in range(3)]
    assert values[0] == values[1] == values[2]
    assert [len(x) for x in sets] == [6, 4, 4, 4]
    assert quality(real[:5], other) != values[0]
