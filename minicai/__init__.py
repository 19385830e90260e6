"""Constitutional AI from scratch: the model, the method, and what measures it."""
