"""The command line around a job: overrides that are remembered, locks, many jobs."""
