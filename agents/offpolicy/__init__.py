"""DDPG: AMC's agent, built on stable-baselines3."""
