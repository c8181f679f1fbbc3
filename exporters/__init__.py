"""What carries the tracer's signals away: console, jsonl, otlp, prometheus and providers."""
