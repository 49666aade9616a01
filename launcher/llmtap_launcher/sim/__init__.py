"""A simulated vLLM 0.33: the same bytes on the wire, made-up text, and faults on demand. No model, no GPU."""
