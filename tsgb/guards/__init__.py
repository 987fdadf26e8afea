"""Guards that an evaluation can compare: each gives a prompt a score."""
