"""Train an agent of stable-baselines3 on the environment, and prune the best network that it met.

``python -m experiments.examples.own_agent`` takes about ten seconds on one core. Replace ``make_network`` and
``make_images`` by your own; any agent that speaks Gymnasium can take the place of TD3.
"""

from __future__ import annotations

import torch
from stable_baselines3 import TD3
from torch import Tensor, nn

import amc

CLASSES = 4


def make_network() -> nn.Module:
    """Return a small network; yours should be trained."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES),
    ).eval()  # fmt: skip


def make_images(count: int) -> tuple[Tensor, Tensor]:
    """Return normalised images (N, 3, 16, 16) and labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 16, 16, generator=generator), torch.arange(count) % CLASSES


def main() -> amc.Compressed:
    """Search with TD3 for half the multiply-adds."""
    images, labels = make_images(256)
    task = amc.CompressionTask(make_network(), images[:64], (images[64:], labels[64:]), macs_ratio=0.5)
    env = task.env()
    agent = TD3("MlpPolicy", env, learning_starts=4 * env.episode_length, seed=0, device="cpu")
    agent.learn(20 * env.episode_length)  # 20 episodes: one step decides one channel group
    return task.result()


if __name__ == "__main__":
    result = main()
    for group in result.strategy.groups:
        print(f"{group.name}: {group.kept} of {group.dense} channels")
    print(
        f"{result.strategy.macs_ratio:.2%} of the multiply-adds; {result.report['pruned']['top1']:.1f}% right"
    )
