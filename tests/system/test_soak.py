"""The short form of the soak, see soak.py."""

from __future__ import annotations

import sys

import pytest
import soak

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")


def check(setup: soak.Setup) -> None:
    result = soak.soak(seconds=0.5, seed=1, setup=setup)
    assert result.problems() == []
    assert all(result.turns.values())


def test_a_mixture_of_clients_leaves_the_server_as_it_was_and_harms_no_good_one() -> None:
    check(soak.Setup())


def test_a_mixture_of_clients_with_and_without_tls_does_so_to_request_handlers() -> None:
    from secure import files

    check(soak.Setup("request", files().server, files().ca))
