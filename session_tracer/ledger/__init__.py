"""One session scope's account, and which scopes are open."""
