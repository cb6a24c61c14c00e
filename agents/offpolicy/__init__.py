"""Off-policy learners: all that stable-baselines3 needs of us."""
