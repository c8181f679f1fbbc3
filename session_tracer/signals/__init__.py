"""What is reported: one module each for spans, metrics, logs and whole values."""
