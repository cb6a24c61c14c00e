"""Exploration: the truncated normal and its schedule."""

import pytest
import torch

from agents.offpolicy.noise import sigma_at, truncated_normal


def test_samples_lie_in_the_range_and_have_the_closed_form_mean():
    torch.manual_seed(0)
    mean, sigma = 0.7, 0.5
    samples = truncated_normal(torch.full((200_000,), mean), sigma, 0.0, 1.0)
    assert samples.min() >= 0
    assert samples.max() <= 1
    normal = torch.distributions.Normal(0.0, 1.0)
    alpha, beta = torch.tensor((0 - mean) / sigma), torch.tensor((1 - mean) / sigma)
    density = normal.log_prob(alpha).exp() - normal.log_prob(beta).exp()
    expected = mean + sigma * density / (normal.cdf(beta) - normal.cdf(alpha))
    assert samples.mean().item() == pytest.approx(expected.item(), abs=2e-3)


def test_no_noise_returns_the_mean_inside_the_range():
    mean = torch.tensor([-0.2, 0.4, 1.3])
    assert torch.equal(truncated_normal(mean, 0.0, 0.0, 1.0), torch.tensor([0.0, 0.4, 1.0]))


def test_a_mean_at_the_edge_still_gives_finite_samples():
    samples = truncated_normal(torch.ones(1000), 1e-3, -1.0, 1.0)
    assert torch.isfinite(samples).all()
    assert (samples > 0.99).all()


def test_noise_decays_per_episode_after_warm_up():
    assert sigma_at(0, 10, 0.5, 0.95) == sigma_at(10, 10, 0.5, 0.95) == 0.5
    assert sigma_at(13, 10, 0.5, 0.95) == pytest.approx(0.5 * 0.95**3)
