"""Generic classes and their type variables, which only type checkers know.

With `typing`, a class would need a package at run time: the type variables have defaults, which
CPython has from 3.13 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Generic as Generic

    from typing_extensions import TypeVar

    ServerT = TypeVar("ServerT", default=Any)
else:
    ServerT = Any

    class Generic:
        """The base of a class ``C`` with parameters. At run time, ``C[anything]`` is ``C``."""

        __slots__ = ()

        def __class_getitem__(cls, _: object) -> type:
            return cls
