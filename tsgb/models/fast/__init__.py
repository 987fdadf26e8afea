"""Packed kernels for models of the Llama family on a CPU in float32, and the engine over them."""
