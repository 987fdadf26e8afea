"""Models: the engine that runs them, the registry that finds them, and what both share."""
