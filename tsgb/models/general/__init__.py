"""An engine over transformers and peft: any causal LM, any device, float32 or bfloat16."""
