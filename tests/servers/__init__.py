"""The real servers that the tests talk to: PostgreSQL and an OpenTelemetry collector."""
