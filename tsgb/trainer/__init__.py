"""Training: advantages, losses, the two players and the outer loop of self-play."""
