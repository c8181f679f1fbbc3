"""A small shop's API with FastAPI and asynchronous sessions."""
