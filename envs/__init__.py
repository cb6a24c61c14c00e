"""Channel pruning as a Gymnasium environment."""

from gymnasium.envs.registration import register, registry

from envs.channel_pruning import ChannelPruningEnv, Network
from envs.observation import FEATURES, GroupFeatures, ObservationTable
from envs.reward import REWARDS, Reward, get_reward

__all__ = [
    "FEATURES",
    "REWARDS",
    "ChannelPruningEnv",
    "GroupFeatures",
    "Network",
    "ObservationTable",
    "Reward",
    "get_reward",
]

ENV_ID = "AMC/ChannelPruning-v0"

if ENV_ID not in registry:
    register(id=ENV_ID, entry_point="envs.channel_pruning:make_channel_pruning")
