"""Constitutional AI from scratch: a small GPT, a sampler, and the pieces that make it harmless, honest and still helpful."""
