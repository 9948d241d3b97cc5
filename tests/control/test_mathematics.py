"""Advantages, moments, policies and losses against closed forms and independent references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions

from fedpisa.control.advantages import (
    Steps,
    discounted_so_far,
    episode_returns,
    gae,
    standardised,
)
from fedpisa.control.losses import a2c_loss, actor_critic_loss, ppo_loss
from fedpisa.control.moments import Moments, pooled
from fedpisa.control.policies import Categorical, Gaussian, Policy, normal_grid
from fedpisa.models.control import actor_critic

GAMMA, LAMBDA = 0.9, 0.8


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)[:, None]


def flags(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.bool_)[:, None]


def steps(terminated: tuple[int, ...], truncated: tuple[int, ...]) -> Steps:
    """Return three steps with rewards 1, 2, 3, values 0.5, 1, 2 and values of the next states 1, 2, 4."""
    return Steps(column(1, 2, 3), column(0.5, 1, 2), column(1, 2, 4), flags(*terminated), flags(*truncated))


def test_gae_of_an_episode_made_by_hand() -> None:
    terminated = gae(steps((0, 0, 1), (0, 0, 0)), GAMMA, LAMBDA)[:, 0]
    deltas = 1 + GAMMA * 1 - 0.5, 2 + GAMMA * 2 - 1, 3 - 2
    decay = GAMMA * LAMBDA
    wanted = [deltas[0] + decay * deltas[1] + decay**2 * deltas[2], deltas[1] + decay * deltas[2], deltas[2]]
    np.testing.assert_allclose(terminated, wanted, rtol=1e-15)


def test_a_truncated_episode_is_bootstrapped_and_a_terminated_one_not() -> None:
    terminated, truncated, cut = (
        gae(steps(*ends), GAMMA, LAMBDA)[:, 0]
        for ends in (((0, 0, 1), (0, 0, 0)), ((0, 0, 0), (0, 0, 1)), ((0, 0, 0), (0, 0, 0)))
    )
    assert truncated[2] - terminated[2] == pytest.approx(GAMMA * 4)
    np.testing.assert_array_equal(truncated, cut)  # the end of the rollout is a cut too


def test_nothing_flows_over_the_end_of_an_episode() -> None:
    whole = gae(steps((0, 0, 1), (0, 1, 0)), GAMMA, LAMBDA)[:, 0]
    assert whole[1] == 2 + GAMMA * 2 - 1
    assert whole[2] == 3 - 2
    both = gae(steps((0, 1, 0), (0, 1, 0)), GAMMA, LAMBDA)[:, 0]
    assert both[1] == 2 - 1  # an end counts more than a cut


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 1), st.integers(1, 30))
def test_gae_is_the_sum_over_each_episode(seed: int, gae_lambda: float, length: int) -> None:
    rng = np.random.default_rng(seed)
    rewards, values, following = rng.normal(size=(3, length, 2))
    terminated, truncated = rng.random((2, length, 2)) < 0.2
    found = gae(Steps(rewards, values, following, terminated, truncated), GAMMA, gae_lambda)
    delta = rewards + GAMMA * np.where(terminated, 0, following) - values
    for t, e in np.ndindex(length, 2):
        total, factor = 0.0, 1.0
        for later in range(t, length):
            total += factor * delta[later, e]
            factor *= GAMMA * gae_lambda
            if terminated[later, e] or truncated[later, e]:
                break
        assert found[t, e] == pytest.approx(total, rel=1e-10, abs=1e-12)


def test_lambda_one_without_values_is_the_discounted_return() -> None:
    zero = np.zeros((3, 1))
    found = gae(Steps(column(1, 2, 3), zero, zero, flags(0, 0, 1), flags(0, 0, 0)), GAMMA, 1.0)
    np.testing.assert_allclose(found[:, 0], [1 + GAMMA * (2 + GAMMA * 3), 2 + GAMMA * 3, 3])
    so_far = discounted_so_far(column(1, 2, 3), flags(0, 1, 0), GAMMA)
    np.testing.assert_allclose(so_far[:, 0], [1, 2 + GAMMA, 3])


def test_returns_are_those_of_whole_episodes() -> None:
    rewards = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    ended = np.array([[True, False], [False, True], [True, False]])
    assert episode_returns(rewards, ended).tolist() == [1.0, 5.0, 30.0]
    assert episode_returns(rewards, np.zeros_like(ended)).size == 0
    assert np.abs(standardised(rewards).mean()) < 1e-12
    assert standardised(rewards).std() == pytest.approx(1)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_merged_moments_are_those_of_the_union(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.normal(rng.normal(0, 100), 3, (size, 2)) for size in sizes]
    merged = Moments.none((2,))
    for part in parts:
        merged = merged.merged(Moments.of(part))
    union = np.concatenate(parts)
    assert merged.count == len(union)
    np.testing.assert_allclose(merged.mean, union.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.variance, union.var(0), rtol=1e-9, atol=1e-12)
    shares = np.array(sizes) / len(union)
    means, squares = (np.array([(part**power).mean(0) for part in parts]) for power in (1, 2))
    both = pooled(means, squares, shares)
    np.testing.assert_allclose(both.mean, union.mean(0), rtol=1e-12)
    np.testing.assert_allclose(both.variance, union.var(0), rtol=1e-6, atol=1e-9)


def test_normalised_observations() -> None:
    x = np.random.default_rng(0).normal(5, 3, (1000, 2))
    scaled = Moments.of(x).normalised(x)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(scaled.std(0), 1, atol=1e-6)
    assert Moments.of(x).normalised(np.full(2, 1e9)).tolist() == [10.0, 10.0]
    np.testing.assert_allclose(Moments.none((2,)).normalised(np.array([1.0, 2.0])), [1, 2], rtol=1e-7)


@pytest.mark.parametrize("policy", [Gaussian(3), Categorical(4)], ids=["gaussian", "categorical"])
def test_a_policy_is_the_distribution_of_torch(policy: Policy) -> None:
    rng = np.random.default_rng(0)
    outputs = torch.from_numpy(rng.normal(size=(200, policy.num_outputs)))
    action = policy.sample(outputs, torch.from_numpy(policy.noise(rng, 200)))
    assert action.shape == (200, policy.action_size)
    if isinstance(policy, Gaussian):
        reference = distributions.Independent(distributions.Normal(outputs[:, :3], outputs[:, 3:].exp()), 1)
        log_prob = reference.log_prob(action)
        assert torch.equal(policy.best(outputs), outputs[:, :3])
    else:
        reference = distributions.Categorical(logits=outputs)
        log_prob = reference.log_prob(action.squeeze(-1))
        assert torch.equal(policy.best(outputs).squeeze(-1), outputs.argmax(-1).double())
    torch.testing.assert_close(policy.log_prob(outputs, action), log_prob)
    torch.testing.assert_close(policy.entropy(outputs), reference.entropy())


def test_samples_have_the_policy_s_frequencies() -> None:
    rng, logits = np.random.default_rng(0), torch.tensor([0.0, 1.0, -1.0, 0.5])
    noise = torch.from_numpy(Categorical(4).noise(rng, 40_000))
    drawn = Categorical(4).sample(logits.expand(40_000, -1), noise).long().flatten()
    counts = torch.bincount(drawn, minlength=4) / 40_000
    torch.testing.assert_close(counts, logits.softmax(0), atol=0.01, rtol=0)
    edge = Categorical(4).sample(logits[None], torch.tensor([[1.0 - 1e-12]]))
    assert int(edge) == 3


@pytest.mark.parametrize("size", [2, 6, 16, 32, 64])
def test_the_grid_has_moments_of_the_normal_distribution(size: int) -> None:
    grid = np.array(normal_grid(size))
    np.testing.assert_array_equal(grid, -grid[::-1])
    for power, wanted, least in ((2, 1, 2), (4, 3, 16), (6, 15, 32)):
        if size >= least:
            assert (grid**power).mean() == pytest.approx(wanted, rel=1e-12)
    with pytest.raises(ValueError, match="give an even number"):
        normal_grid(3)


def test_the_gradient_of_ppo_at_ratio_one_is_that_of_a2c() -> None:
    torch.manual_seed(0)
    log_prob, advantage = torch.randn(50).double(), torch.randn(50).double()
    gradients = []
    for loss in (
        lambda p: ppo_loss(p, log_prob, advantage, 0.2),
        lambda p: ppo_loss(p, log_prob, advantage, float("inf")),
        lambda p: a2c_loss(p, advantage),
    ):
        point = log_prob.clone().requires_grad_()
        gradients.append(torch.autograd.grad(loss(point).sum(), point)[0])
    for gradient in gradients:
        torch.testing.assert_close(gradient, -advantage, rtol=1e-15, atol=0)


def test_ppo_is_flat_where_a_step_has_gone_far_enough() -> None:
    # Beyond the clip in the advantage's direction there is no gradient; against it there is.
    log_ratio = torch.tensor([0.3, -0.3, 0.3, -0.3], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, -1.0, 1.0])
    loss = ppo_loss(log_ratio, torch.zeros(4), advantage, 0.2)
    gradient = torch.autograd.grad(loss.sum(), log_ratio)[0]
    assert (gradient == 0).tolist() == [True, True, False, False]
    torch.testing.assert_close(gradient[2:], (-advantage * log_ratio.detach().exp())[2:])


def test_the_whole_loss_is_the_sum_of_its_parts() -> None:
    policy, value, returns, entropy = torch.randn(4, 5)
    found = actor_critic_loss(policy, value, returns, entropy, 0.25, 0.01)
    torch.testing.assert_close(found, policy + 0.25 * (returns - value) ** 2 - 0.01 * entropy)


def test_the_model_starts_orthogonal() -> None:
    torch.manual_seed(0)
    model = actor_critic((2, 3), 2 * 2 + 1, num_log_stds=2)
    outputs = model(torch.randn(7, 2, 3))
    assert outputs.shape == (7, 5)
    assert bool((outputs[:, 2:4] == -0.5).all())  # whatever the state
    assert float(outputs[:, :2].abs().max()) < 0.1
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() == 2}
    for name, weight in weights.items():
        small = weight.T @ weight if weight.shape[0] > weight.shape[1] else weight @ weight.T
        last = weight.shape[0] in (1, 2)
        gain = (0.01 if "policy" in name else 1.0) if last else 2**0.5
        torch.testing.assert_close(small, gain**2 * torch.eye(len(small)), atol=1e-5, rtol=1e-4)
    discrete = actor_critic((4,), 3 + 1)
    assert discrete(torch.zeros(1, 4)).shape == (1, 4)
    assert "log_std" not in dict(discrete.named_parameters())
