"""Named tuples are those of `typing`, but cheap to define."""

from __future__ import annotations

import pickle

import pytest

from netkit.core.record import NamedTuple


class Point(NamedTuple):
    """A place."""

    x: int
    y: int | None = None

    @property
    def total(self) -> int:
        return self.x + (self.y or 0)

    @classmethod
    def origin(cls) -> Point:
        return cls(0, 0)


def test_a_named_tuple_has_fields_defaults_and_methods() -> None:
    point = Point(3)
    assert point == (3, None)
    assert point._replace(y=4).total == 7
    assert Point.origin()._asdict() == {"x": 0, "y": 0}
    assert (repr(point), Point.__doc__) == ("Point(x=3, y=None)", "A place.")
    assert (Point.__qualname__, Point.__module__) == ("Point", __name__)
    with pytest.raises(TypeError):
        Point()  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        point.x = 4  # type: ignore[misc]


def test_a_named_tuple_can_be_pickled_and_be_a_base() -> None:
    class Named(Point):
        name = "here"

    assert pickle.loads(pickle.dumps(Point(1, 2))) == Named(1, 2)
    assert Named(1).name == "here"
