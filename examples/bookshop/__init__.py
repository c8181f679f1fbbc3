"""A bookshop on SQLite, with the mistakes of real code."""
