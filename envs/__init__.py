"""Channel pruning as a Gymnasium environment."""

from gymnasium.envs.registration import register, registry

from envs.channel_pruning import ChannelPruningEnv, Network
from envs.channel_weighting import SPAN, ChannelWeightingEnv, actions_of, centred, weights_of
from envs.observation import CURVE_FEATURES, FEATURES, GroupFeatures, ObservationTable
from envs.reward import REWARDS, Reward, get_reward

__all__ = [
    "CURVE_FEATURES",
    "ENV_ID",
    "FEATURES",
    "REWARDS",
    "SPAN",
    "WEIGHTING_ENV_ID",
    "ChannelPruningEnv",
    "ChannelWeightingEnv",
    "GroupFeatures",
    "Network",
    "ObservationTable",
    "Reward",
    "actions_of",
    "centred",
    "get_reward",
    "weights_of",
]

ENV_ID = "AMC/ChannelPruning-v0"
WEIGHTING_ENV_ID = "AMC/ChannelWeighting-v0"

for _name, _entry in (
    (ENV_ID, "envs.channel_pruning:make_channel_pruning"),
    (WEIGHTING_ENV_ID, "envs.channel_weighting:make_channel_weighting"),
):
    if _name not in registry:
        register(id=_name, entry_point=_entry)
