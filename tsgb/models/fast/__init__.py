"""Packed kernels for Llama and Qwen2 on a CPU, in float32 or bfloat16, and the engine over them."""
