"""Classes that are generic for type checkers only."""

from __future__ import annotations

from typing import Any

import pytest

import netkit


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        (netkit.Connection, str),
        (netkit.Handler, netkit.Server),
        (netkit.EchoHandler, (netkit.Server, str)),
    ],
)
def test_a_class_with_parameters_is_the_class_itself(kind: Any, parameters: Any) -> None:
    assert kind[parameters] is kind

    class Derived(kind[parameters]):  # type: ignore[misc]
        pass

    assert Derived.__bases__ == (kind,)
    assert "__orig_bases__" not in vars(Derived)
