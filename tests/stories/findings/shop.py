"""Mapped classes that read their own attributes, and one whose column the database fills in."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import datetime  # noqa: TC003 - SQLAlchemy looks it up
from typing import TYPE_CHECKING

from sqlalchemy import ForeignKey, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.twins import Twin


class Base(DeclarativeBase):
    """What all of them are mapped with."""


class Customer(Base):
    """Speaks for itself, by what it has to load first."""

    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    notes: Mapped[str] = mapped_column(default="", deferred=True)
    changed_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())
    orders: Mapped[list[Order]] = relationship(back_populates="customer")

    @property
    def total(self) -> int:
        return len(self.orders)  # <- total

    def __repr__(self) -> str:
        return f"Customer({self.name})"  # <- repr


class Order(Base):
    """Is a customer's."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))
    customer: Mapped[Customer] = relationship(back_populates="orders")


@asynccontextmanager
async def opened(twin: Twin) -> AsyncIterator[None]:
    """Their tables, with one customer who has two orders."""
    await twin.execute(Base.metadata.create_all)
    try:
        async with twin.session() as session:
            session.add(Customer(name="Ada", orders=[Order(), Order()]))
            await session.commit()
        yield
    finally:
        await twin.execute(Base.metadata.drop_all)
