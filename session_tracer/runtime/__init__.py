"""Processes, threads and what the environment offers."""
