"""Runs SQLAlchemy's own tests, untraced and traced, and compares what they come to."""
