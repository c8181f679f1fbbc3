"""The beginning of programs that run in a process of their own: a shop with one mapped class."""

SHOP = """
import atexit, json, os, sys, time
from sqlalchemy import create_engine, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from sqlalchemy.pool import StaticPool
from session_tracer import instrument

class Base(DeclarativeBase): ...
class Book(Base):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True)

engine = create_engine("sqlite://", poolclass=StaticPool)
atexit.register(engine.dispose)
Base.metadata.create_all(engine)
SessionLocal = sessionmaker(engine)
"""
