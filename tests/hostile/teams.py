"""Models as SQLModel's users write them; it reads no annotations that are postponed."""

from sqlmodel import Field, Relationship, SQLModel


class Team(SQLModel, table=True):
    """Has players."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    players: list["Player"] = Relationship(back_populates="team")


class Player(SQLModel, table=True):
    """Plays in a team."""

    id: int | None = Field(default=None, primary_key=True)
    name: str
    team_id: int | None = Field(default=None, foreign_key="team.id")
    team: Team | None = Relationship(back_populates="players")
