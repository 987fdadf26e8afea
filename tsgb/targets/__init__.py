"""Models that answer prompts. To everything above they are black boxes: prompts in, text out."""
