"""The version, as the installed package says it."""

from importlib.metadata import version

VERSION = version("session-tracer")
