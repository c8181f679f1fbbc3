"""What is told to the world: one module each for spans, metrics, logs and reports."""
