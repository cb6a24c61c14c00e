"""Hyper-parameters of DDPG."""

from __future__ import annotations

from dataclasses import dataclass, field

from agents.checks import POSITIVE, SHARE, UNIT, WIDTHS, at_least, validate


@dataclass(frozen=True)
class DDPGSettings:
    """Hyper-parameters; the defaults are AMC's (paper section 4 and the official code).

    With a ``guide`` the first episode carries it out (actions above 0.9975 as 0.9975, so that the actor can
    still move away), warm-up episodes explore around it instead of uniformly, and the actor learns an offset
    to it.

    Attributes:
        warmup_episodes: episodes before learning starts; their actions are uniform.
        hidden: widths of the hidden layers of actor and critic.
        actor_lr, critic_lr: Adam's learning rates.
        tau: update rate of the target networks.
        gamma: discount per step.
        batch_size: transitions per gradient step.
        replay_size: transitions in the replay buffer.
        baseline_alpha, standardise, store_executed: see ``EpisodeReplayBuffer``.
        updates_per_step: gradient steps per environment step, taken after the episode.
        guide: the initial allocation, one action (preserve ratio) a step; empty for none (AMC).
        step_features: whether actor and critic also receive the step, one-hot.
        sigma: standard deviation of the exploration noise, in units of the action.
        sigma_decay: factor of ``sigma`` per episode after warm-up.
        explore_share: share of the steps whose action is perturbed; at least two steps an episode on average.
            1 perturbs every step (AMC).
        follow_best: whether the guide moves to the best episode so far, which resets the actor's offset.
        seek_new: whether the noise grows by half for each episode in a row that repeats an earlier network.
        still_every: every how many episodes one acts without noise, which shows the return of the policy
            itself; 0 for none.
        imagined: imagined episodes after every real one, where a world model is possible
            (``agents.offpolicy.imagination``); 0 for none (AMC). With them, real episodes explore by draws
            from the belief, and ``sigma``, ``explore_share`` and ``follow_best`` are not used.
        imagined_sigma: standard deviation of the actions of imagined episodes, in [-1, 1].
        prior: standard deviation of the prior of the belief's factors, relative to its mean.
        noise: standard deviation of the belief's noise, as a share of the first episode's loss.
        factors: mean of that prior, one factor a step (``agents.transfer``); empty for 1 each.

    Raises:
        ValueError: names an impossible setting, its value and what is expected.
    """

    warmup_episodes: int = field(default=100, metadata=at_least(0))
    hidden: tuple[int, ...] = field(default=(300, 300), metadata=WIDTHS)
    actor_lr: float = field(default=1e-4, metadata=POSITIVE)
    critic_lr: float = field(default=1e-3, metadata=POSITIVE)
    tau: float = field(default=0.01, metadata=SHARE)
    gamma: float = field(default=1.0, metadata=UNIT)
    batch_size: int = field(default=64, metadata=at_least(1))
    replay_size: int = field(default=2000, metadata=at_least(1))
    baseline_alpha: float = field(default=0.5, metadata=UNIT)
    standardise: bool = False
    store_executed: bool = True
    updates_per_step: int = field(default=1, metadata=at_least(1))
    guide: tuple[float, ...] = ()
    step_features: bool = False
    sigma: float = field(default=0.5, metadata=at_least(0))
    sigma_decay: float = field(default=0.95, metadata=SHARE)
    explore_share: float = field(default=1.0, metadata=SHARE)
    follow_best: bool = False
    seek_new: bool = False
    still_every: int = field(default=0, metadata=at_least(0))
    imagined: int = field(default=0, metadata=at_least(0))
    imagined_sigma: float = field(default=0.15, metadata=POSITIVE)
    prior: float = field(default=0.3, metadata=POSITIVE)
    noise: float = field(default=0.02, metadata=POSITIVE)
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        validate(self)
