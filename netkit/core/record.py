"""Named tuples that are cheap to define.

`typing.NamedTuple` compiles each annotation that is text, and the first call of ``compile()`` in a
process takes 2 milliseconds, which is much of the start of a server.
"""

from __future__ import annotations

from collections import namedtuple
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:

    class _Definition(type):
        """Makes a named tuple of a class with annotations, and keeps its other attributes."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            fields = type(name, (), dict(body)).__annotations__
            defaults = [body.pop(field) for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults, module=body["__module__"])
            for key, value in body.items():
                if key not in ("__module__", "__qualname__", "__slots__", "__classcell__"):
                    setattr(made, key, value)
            made.__qualname__ = body["__qualname__"]
            return made

    NamedTuple = type.__new__(_Definition, "NamedTuple", (), {"__doc__": "As in `typing`."})
