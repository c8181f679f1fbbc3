"""A bookshop over SQLite, with the habits and the mistakes of real code."""
