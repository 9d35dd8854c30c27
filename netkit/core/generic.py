"""Generic classes and their type variables, which only type checkers know.

The type variables have defaults, which `typing` knows only from CPython 3.13 on. So at run time
there are none, and a class is not generic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Generic as Generic

    from typing_extensions import TypeVar

    ServerT = TypeVar("ServerT", default=Any)
    # What reads return: bytes, or text if the program has asked for it.
    DataT = TypeVar("DataT", bound="bytes | str", default=bytes)
    DataT_co = TypeVar("DataT_co", bound="bytes | str", default=bytes, covariant=True)
else:
    ServerT = DataT = DataT_co = Any

    class Generic:
        """The base of a class ``C`` with parameters. At run time, ``C[anything]`` is ``C``."""

        __slots__ = ()

        def __class_getitem__(cls, _: object) -> type:
            return cls
