"""Attributes that are read when they can no longer be loaded."""

from sqlalchemy import select

from examples.misuse.db import AsyncSessionLocal, SessionLocal
from examples.misuse.models import Author, Book


def author_page(name: str = "Author 1") -> str:
    """Renders an author whose session is closed."""
    return _render(_find(name))


def _find(name: str) -> Author:
    with SessionLocal() as session:
        return session.scalars(select(Author).where(Author.name == name)).one()


def _render(author: Author) -> str:
    return f"{author.name}: {', '.join(book.title for book in author.books)}"


async def book_page(book_id: int = 1) -> str:
    """Reads the author of a book, which only await could load."""
    async with AsyncSessionLocal() as session:
        book = await session.get_one(Book, book_id)
        return f"{book.title} by {book.author.name}"
