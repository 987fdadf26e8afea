"""Models: a causal LM with one adapter a role, tiny models from recipes, and targets."""
