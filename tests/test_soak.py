"""The short form of the soak, see soak.py."""

from __future__ import annotations

import sys

import pytest
import soak


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_a_mixture_of_clients_leaves_the_server_as_it_was_and_harms_no_good_one() -> None:
    result = soak.soak(seconds=0.5, seed=1)
    assert result.problems() == []
    assert all(result.turns.values())
