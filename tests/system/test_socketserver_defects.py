"""The known defects of `socketserver.ThreadingTCPServer`, and the tests that netkit has none.

Each row has a defect, and the names of the tests, in whatever file, that show the behaviour of
netkit instead. `docs/socketserver.md` has the same from a user's point of view.
"""

from __future__ import annotations

import re
from collections import Counter

from support import ROOT

DEFECTS = {
    # Stopping and life cycle
    "shutdown before serve_forever blocks forever": [
        "test_shutdown_before_serve_forever_does_not_block_and_ends_the_next_one"
    ],
    "shutdown in the serving thread deadlocks": [
        "test_a_signal_handler_in_the_serving_thread_can_stop_the_server",
        "test_a_hook_in_the_serving_thread_can_shut_the_server_down",
    ],
    "a second shutdown ends the next serve_forever, too": [
        "test_a_second_shutdown_does_not_end_the_next_serve_forever"
    ],
    "a shutdown ends one of two loops only": [
        "test_a_second_serve_forever_waits_until_the_first_has_ended"
    ],
    "stopping is polled": [
        "test_shutdown_does_not_wait_for_the_poll_interval",
        "test_an_idle_server_never_wakes_up",
    ],
    "server_close waits for an idle client forever": [
        "test_row_socketserver_idle_sees_the_end_when_it_was_answered",
        "test_row_socketserver_idle_sees_the_end_when_it_is_silent",
        "test_row_blocked_is_left_behind_at_the_deadline",
    ],
    "a with block with an idle client takes two Ctrl+C": [
        "test_one_ctrl_c_ends_a_with_block_that_has_an_idle_client",
        "test_ctrl_c_while_the_thread_of_a_client_starts_leaves_no_client_half_served",
    ],
    "SIGTERM ends the process at once": ["test_a_second_sigterm_cuts_nobody"],
    "daemon threads are cut, and not waited for": [
        "test_row_socketserver_busy_is_answered",
        "test_the_end_of_the_program_lets_busy_clients_finish",
    ],
    "there is no limited wait for clients to finish": [
        "test_row_mid_line_is_answered_once_the_rest_has_come",
        "test_row_mid_line_is_not_taken_for_a_message_at_the_deadline",
    ],
    "server_close in a handler joins its own thread": [
        "test_a_request_handler_can_end_the_loop_and_still_reply"
    ],
    "server_close without shutdown leaves a busy loop": [
        "test_server_close_without_shutdown_ends_the_loop",
        "test_the_loss_of_one_listener_ends_the_loop",
    ],
    "clients in the kernel's queue are reset": ["test_row_queued_data_is_served"],
    "no client is served after the end of the main thread": [
        "test_a_server_in_a_thread_outlives_the_main_thread"
    ],
    "a daemon thread that writes to standard error can abort the interpreter": [
        "test_handlers_that_fail_while_the_program_ends_are_reported_whole"
    ],
    "there are no signal handlers, and none can be had off the main thread": [
        "test_off_the_main_thread_the_log_says_that_signals_are_not_handled"
    ],
    "accept blocks if another process was faster": [
        "test_of_two_selectors_that_see_one_client_one_does_not_block",
        "test_two_servers_that_share_a_listener_both_stop",
    ],
    # Overload
    "without descriptors it is a busy loop": [
        "test_without_descriptors_new_clients_wait_and_connected_ones_are_served",
        "test_a_pause_ends_when_a_stop_is_requested",
        "test_a_pause_in_accepting_ends_in_programs_that_schedule_clients_themselves",
    ],
    "a thread that cannot start loses its client, and breaks server_close": [
        "test_a_client_whose_thread_cannot_start_waits_until_one_can",
        "test_without_memory_for_a_thread_a_client_waits_until_there_is_some",
        "test_while_no_thread_can_be_started_a_stop_returns_a_report",
    ],
    "the number of clients has no limit": ["test_the_limit_is_exact_if_many_clients_come_at_once"],
    "the queue has room for five": ["test_the_kernel_gets_the_backlog"],
    "hooks run in the accepting thread": [
        "test_a_slow_verify_request_delays_no_other_client",
        "test_a_slow_handle_error_delays_no_other_client",
    ],
    "each client has a new thread": ["test_threads_are_used_again"],
    "each accept looks at all threads": [
        "test_accepting_a_client_costs_the_same_number_of_calls_however_many_there_are"
    ],
    "dead threads are kept until the next client": ["test_a_thread_that_is_not_needed_ends"],
    # The loop
    "an exception in a hook ends serve_forever": [
        "test_a_hook_that_raises_ends_that_client_alone",
        "test_an_exception_in_get_request_is_logged_and_the_server_accepts_again",
        "test_an_exception_in_service_actions_is_logged_and_the_server_accepts_on",
        "test_a_handle_error_that_raises_is_logged_and_ends_that_client_alone",
    ],
    "errors of get_request are silent": ["test_a_handshake_that_fails_in_get_request_is_logged"],
    "what a failing setup has opened stays open": [
        "test_the_socket_is_closed_if_setup_fails",
        "test_closed_is_called_once_whatever_fails",
    ],
    "an error of finish replaces that of handle": [
        "test_an_error_of_finish_does_not_hide_that_of_handle",
        "test_a_last_flush_to_a_client_that_is_gone_hides_no_error_and_leaves_nothing_open",
    ],
    "a file that a handler keeps keeps the descriptor": [
        "test_a_file_that_a_handler_has_made_of_its_socket_keeps_no_descriptor"
    ],
    "SystemExit in a handler is silent": ["test_system_exit_in_a_handler_ends_that_client_alone"],
    "a handler that forks disturbs the server": [
        "test_a_child_that_a_handler_forks_keeps_no_client_connected",
        "test_a_program_that_is_executed_gets_no_descriptor_but_the_standard_ones",
    ],
    # Input and output
    "a dead peer holds its thread forever": [
        "test_keep_alive_finds_a_dead_peer_within_minutes",
        "test_the_socket_options_reach_each_client",
    ],
    "a trickle defeats the timeout": ["test_a_line_that_comes_byte_by_byte_meets_the_read_timeout"],
    "after a timeout nothing can be read": [
        "test_a_read_that_waits_too_long_is_a_timeout_and_nothing_is_lost"
    ],
    "a slow reader is cut although it makes progress": [
        "test_a_slow_peer_that_makes_progress_is_not_timed_out"
    ],
    "a line has no limit": ["test_a_line_that_is_too_long_is_the_clients_fault"],
    "unread input destroys the reply": [
        "test_closing_with_unread_input_does_not_truncate_the_reply",
        "test_an_early_reply_reaches_a_client_that_reads_only_after_its_upload",
    ],
    "small replies wait for each other": ["test_the_socket_options_reach_each_client"],
    "a close from another thread does not wake a reader": [
        "test_closing_from_another_thread_ends_a_read"
    ],
    # TLS
    "a silent client blocks the handshakes of all others, and shutdown": [
        "test_a_silent_client_keeps_no_other_waiting"
    ],
    "TLS ends without a close_notify": [
        "test_each_kind_of_handler_speaks_tls_and_ends_with_a_close_notify"
    ],
    # Defaults, and what can be observed
    "a server cannot be bound again at once": [
        "test_a_server_can_be_bound_again_while_its_old_connections_are_in_time_wait"
    ],
    "a second server takes the port without an error": [
        "test_a_port_is_shared_only_if_that_is_wanted",
        "test_sharing_a_port_means_nothing_to_a_unix_socket",
    ],
    "there is no IPv6": [
        "test_an_ipv6_address_is_bound_as_it_is",
        "test_without_a_host_ipv4_and_ipv6_clients_are_served_by_one_listener",
    ],
    "serve_forever ignores handle_timeout": [
        "test_serve_forever_calls_handle_timeout_when_no_client_comes"
    ],
    "each reset is a traceback on standard error": [
        "test_a_client_that_resets_is_no_failure_of_the_handler",
        "test_an_error_of_another_connection_is_a_failure_of_the_handler",
    ],
    "the reports of several threads mix": [
        "test_a_failing_handler_is_logged_once_with_id_and_peer_and_harms_no_other_client"
    ],
    "nothing tells which clients are connected": [
        "test_connections_are_those_that_are_open_now",
        "test_the_events_of_a_life_come_in_order_and_with_exact_counts",
    ],
    "threads have no names of their own": [
        "test_a_client_thread_is_named_after_its_connection_and_then_parked"
    ],
    "a socket that is bound already cannot be used": [
        "test_an_inherited_descriptor_is_served_whether_it_listens_already_or_not"
    ],
    "a handler has no arguments": ["test_handlers_of_each_kind_get_the_handler_args"],
}


def test_each_defect_has_tests_that_netkit_is_without_it() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    defined = Counter(re.findall(r"^def (test_\w+)\(", "\n".join(sources), re.MULTILINE))
    for defect, tests in DEFECTS.items():
        assert tests, defect
        assert {name: defined[name] for name in tests} == dict.fromkeys(tests, 1), defect
