"""What requests and responses contain."""

from pydantic import BaseModel, ConfigDict


class FromObject(BaseModel):
    """A response that FastAPI reads from a mapped object."""

    model_config = ConfigDict(from_attributes=True)


class BookOut(FromObject):
    id: int
    title: str
    price: int


class AuthorOut(FromObject):
    id: int
    name: str
    books: list[BookOut]


class CustomerIn(BaseModel):
    email: str


class CustomerOut(FromObject):
    id: int
    email: str


class OrderIn(BaseModel):
    books: list[int]


class OrderOut(FromObject):
    id: int
    is_paid: bool


class PriceIn(BaseModel):
    price: int


class Page(BaseModel):
    books: list[BookOut]
    next: str | None
