"""The tables of states of a connection."""

from __future__ import annotations

import pytest

from netkit.net.states import InputState, OutputState

OPEN, DRAINING, DRAINED, SHUT, EMPTIED, ENDED = InputState


@pytest.mark.parametrize(
    ("state", "drained", "shut", "ended"),
    [
        (OPEN, DRAINING, SHUT, ENDED),
        (DRAINING, DRAINING, SHUT, DRAINED),
        (DRAINED, DRAINED, DRAINED, DRAINED),
        (SHUT, SHUT, SHUT, EMPTIED),
        (EMPTIED, EMPTIED, EMPTIED, EMPTIED),
        (ENDED, DRAINED, ENDED, ENDED),
    ],
)
def test_the_input_never_opens_again(
    state: InputState, drained: InputState, shut: InputState, ended: InputState
) -> None:
    assert (state.drained(), state.shut(), state.ended()) == (drained, shut, ended)


def test_reads_end_in_these_states_without_a_look_at_the_socket() -> None:
    assert [state for state in InputState if state.is_over()] == [DRAINED, EMPTIED, ENDED]
    assert [state for state in InputState if state.is_shut()] == [SHUT, EMPTIED]


def test_these_outputs_end_with_a_reset() -> None:
    incomplete = [state for state in OutputState if state.is_incomplete()]
    assert incomplete == [OutputState.ABANDONED, OutputState.BROKEN]
