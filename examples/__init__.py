"""Applications that show the tracer at work."""
