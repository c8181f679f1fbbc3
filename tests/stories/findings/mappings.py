"""Mapped classes that are related in every way: a company, its staff, its parts and its courses."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sqlalchemy import Column, ForeignKey, ForeignKeyConstraint, Table, func, select
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    WriteOnlyMapped,
    column_property,
    mapped_column,
    relationship,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.twins import Twin


class Base(AsyncAttrs, DeclarativeBase):
    """What all of them are mapped with."""


class Company(Base):
    """Has a staff of all kinds, and visits that are only written."""

    __tablename__ = "companies"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="")
    staff: Mapped[list[Employee]] = relationship(back_populates="company")
    visits: WriteOnlyMapped[Visit] = relationship()


class Visit(Base):
    """Is to a company."""

    __tablename__ = "visits"

    id: Mapped[int] = mapped_column(primary_key=True)
    company_id: Mapped[int] = mapped_column(ForeignKey("companies.id"))


class Employee(Base):
    """The base of a joined inheritance."""

    __tablename__ = "employees"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    diary: Mapped[str] = mapped_column(default="", deferred=True)
    company_id: Mapped[int | None] = mapped_column(ForeignKey("companies.id"))
    company: Mapped[Company | None] = relationship(back_populates="staff")
    badges: Mapped[list[Badge]] = relationship()
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "employee"}  # noqa: RUF012 - SQLAlchemy's own spelling


class Badge(Base):
    """Is worn by an employee of any kind."""

    __tablename__ = "badges"

    id: Mapped[int] = mapped_column(primary_key=True)
    employee_id: Mapped[int] = mapped_column(ForeignKey("employees.id"))


class Manager(Employee):
    """Has a budget, an office and reports of its own."""

    __tablename__ = "managers"

    id: Mapped[int] = mapped_column(ForeignKey("employees.id"), primary_key=True)
    budget: Mapped[int] = mapped_column(default=0)
    secret: Mapped[str] = mapped_column(default="", deferred=True)
    office_id: Mapped[int | None] = mapped_column(ForeignKey("offices.id"))
    office: Mapped[Office | None] = relationship()
    reports: Mapped[list[Report]] = relationship()
    __mapper_args__ = {"polymorphic_identity": "manager"}  # noqa: RUF012 - SQLAlchemy's own spelling


class Engineer(Employee):
    """Has a language of its own."""

    __tablename__ = "engineers"

    id: Mapped[int] = mapped_column(ForeignKey("employees.id"), primary_key=True)
    language: Mapped[str] = mapped_column(default="")
    __mapper_args__ = {"polymorphic_identity": "engineer"}  # noqa: RUF012 - SQLAlchemy's own spelling


class Office(Base):
    """Is a manager's, and has plants."""

    __tablename__ = "offices"

    id: Mapped[int] = mapped_column(primary_key=True)
    plants: Mapped[list[Plant]] = relationship()


class Plant(Base):
    """Stands in an office."""

    __tablename__ = "plants"

    id: Mapped[int] = mapped_column(primary_key=True)
    office_id: Mapped[int] = mapped_column(ForeignKey("offices.id"))


class Report(Base):
    """Is a manager's."""

    __tablename__ = "reports"

    id: Mapped[int] = mapped_column(primary_key=True)
    manager_id: Mapped[int] = mapped_column(ForeignKey("managers.id"))


class Vehicle(Base):
    """The base of a single-table inheritance."""

    __tablename__ = "vehicles"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "vehicle"}  # noqa: RUF012 - SQLAlchemy's own spelling


class Truck(Vehicle):
    """Has columns and trips that no other vehicle has."""

    load: Mapped[int | None]
    axles: Mapped[int | None]
    trips: Mapped[list[Trip]] = relationship()
    __mapper_args__ = {"polymorphic_identity": "truck"}  # noqa: RUF012 - SQLAlchemy's own spelling


class Bicycle(Vehicle):
    """Has a column that is loaded with every vehicle."""

    gears: Mapped[int | None]
    __mapper_args__ = {  # noqa: RUF012 - SQLAlchemy's own spelling
        "polymorphic_identity": "bicycle",
        "polymorphic_load": "inline",
    }


class Trip(Base):
    """Is a truck's."""

    __tablename__ = "trips"

    id: Mapped[int] = mapped_column(primary_key=True)
    truck_id: Mapped[int] = mapped_column(ForeignKey("vehicles.id"))


class Part(Base):
    """Consists of parts."""

    __tablename__ = "parts"

    id: Mapped[int] = mapped_column(primary_key=True)
    whole_id: Mapped[int | None] = mapped_column(ForeignKey("parts.id"))
    parts: Mapped[list[Part]] = relationship(back_populates="whole")
    whole: Mapped[Part | None] = relationship(back_populates="parts", remote_side="Part.id")


class Shelf(Base):
    """Has the same things by every way of loading them eagerly, or never."""

    __tablename__ = "shelves"

    id: Mapped[int] = mapped_column(primary_key=True)
    things: Mapped[list[Thing]] = relationship(lazy="raise")
    joined: Mapped[list[Thing]] = relationship(lazy="joined", viewonly=True)
    selectin: Mapped[list[Thing]] = relationship(lazy="selectin", viewonly=True)
    subquery: Mapped[list[Thing]] = relationship(lazy="subquery", viewonly=True)
    immediate: Mapped[list[Thing]] = relationship(lazy="immediate", viewonly=True)


class Thing(Base):
    """Lies on a shelf, and knows it without asking."""

    __tablename__ = "things"

    id: Mapped[int] = mapped_column(primary_key=True)
    shelf_id: Mapped[int | None] = mapped_column(ForeignKey("shelves.id"))
    shelf: Mapped[Shelf | None] = relationship(viewonly=True)


attendance = Table(
    "attendance",
    Base.metadata,
    Column("student_id", ForeignKey("students.id"), primary_key=True),
    Column("course_id", ForeignKey("courses.id"), primary_key=True),
)


class Student(Base):
    """Attends courses, and has taken exams in some."""

    __tablename__ = "students"

    id: Mapped[int] = mapped_column(primary_key=True)
    courses: Mapped[list[Course]] = relationship(secondary=attendance, back_populates="students")
    exams: Mapped[list[Exam]] = relationship()
    examined: AssociationProxy[list[Course]] = association_proxy("exams", "course")


class Course(Base):
    """Is attended by students, whom it counts when it is asked to."""

    __tablename__ = "courses"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(default="")
    size: Mapped[int] = column_property(
        select(func.count()).where(attendance.c.course_id == id).scalar_subquery(),  # noqa: A003 - it is the column
        deferred=True,
    )
    students: Mapped[list[Student]] = relationship(secondary=attendance, back_populates="courses")


class Exam(Base):
    """Is one student's in one course: a key of two columns."""

    __tablename__ = "exams"

    student_id: Mapped[int] = mapped_column(ForeignKey("students.id"), primary_key=True)
    course_id: Mapped[int] = mapped_column(ForeignKey("courses.id"), primary_key=True)
    course: Mapped[Course] = relationship()
    answers: Mapped[list[Answer]] = relationship()


class Answer(Base):
    """Is given in an exam."""

    __tablename__ = "answers"
    __table_args__ = (
        ForeignKeyConstraint(["student_id", "course_id"], ["exams.student_id", "exams.course_id"]),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    student_id: Mapped[int]
    course_id: Mapped[int]


@asynccontextmanager
async def tables(twin: Twin) -> AsyncIterator[None]:
    """The tables of these classes, beside those of the library."""
    await twin.execute(Base.metadata.create_all)
    try:
        yield
    finally:
        if twin.database != "sqlite":  # whose file goes with the test
            await twin.execute(Base.metadata.drop_all)
