"""Every scenario that an HTTP connection pool has to meet, and the tests that say how ours does.

`SCENARIOS` (S1 to S67) are the situations over which pools of this kind stumble, in the order of a request's life;
`FAULTS` (F1 to F40) are what peers, networks, the system and interruptions do to one.  Each has a statement, and the
tests that hold it, as ``file.py::test``, or ``file.py::*`` where a whole file is about nothing else.  Where it does not
apply here, or our promise is another one than elsewhere, a reason says so; a reason alone takes the place of tests only
where there is nothing to run.

The tests below keep the list honest: it is complete, and each test that it names exists.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the list.

    Attributes:
        statement: What must be so.
        tests: The tests that hold it.
        reason: Why there are none, or in what our promise differs; empty: nothing to explain.
    """

    statement: str
    tests: tuple[str, ...] = ()
    reason: str = ""


SCENARIOS: Final[Mapping[str, Entry]] = {
    # Reuse and closing
    "S1": Entry(
        statement="Requests one after the other share one connection.",
        tests=(
            "test_pool_scenarios.py::test_requests_one_after_the_other_share_one_connection",
            "test_tls.py::test_requests_are_answered_over_one_verified_connection",
            "test_tunnel.py::test_tunnel_serves_one_request_after_the_other",
        ),
    ),
    "S2": Entry(
        statement="A connection whose response says close is not kept.",
        tests=("test_pool.py::test_connection_that_the_response_ends_does_not_come_back",),
    ),
    "S3": Entry(
        statement="An HTTP/1.0 connection is kept only if the server says keep-alive.",
        tests=(
            "test_pool_scenarios.py::test_connection_of_an_http_1_0_server_is_kept_only_if_it_says_so",
            "test_pool.py::test_connection_that_the_response_ends_does_not_come_back",
            "test_wire.py::test_reuse_is_what_version_and_connection_field_say",
        ),
    ),
    "S4": Entry(
        statement="When the server closes after its answer, the next request goes over a new connection unnoticed.",
        tests=(
            "test_pool_faults.py::test_end_of_an_idle_connection_is_seen_at_checkout_and_never_read_as_an_answer",
            "test_pool_faults.py::test_end_of_an_idle_tls_connection_is_seen_at_checkout",
            "test_security.py::test_cve_2026_48931_end_right_behind_the_body_is_no_premature_close",
        ),
    ),
    "S5": Entry(
        statement="A connection that dies between checkout and the request costs no request that may be repeated.",
        tests=(
            "test_pool_faults.py::test_request_that_may_be_repeated_is_sent_again_on_a_new_connection",
            "test_pool_faults.py::test_request_of_which_no_byte_was_written_is_sent_again_whatever_its_method",
            "test_pool_faults.py::test_request_that_may_not_be_repeated_is_never_sent_again",
        ),
    ),
    "S6": Entry(
        statement="A response that was read to its end gives its connection back.",
        tests=(
            "test_pool.py::test_request_returns_the_whole_response_and_the_connection_is_back",
            "test_pool_scenarios.py::test_stream_that_was_read_to_its_end_keeps_its_connection_until_its_block_ends",
        ),
        reason="request() has it back before it returns; a stream gives it back when its block ends, never in between, "
        "so that who holds a connection can be read off the code.",
    ),
    "S7": Entry(
        statement="A response that is not read to its end keeps its connection.",
        tests=(
            "test_pool.py::test_stream_lends_its_response_for_the_block",
            "test_response.py::test_response_that_is_dropped_unread_still_holds_its_connection",
            "test_conn_states.py::test_unread_response_refuses_whatever_would_write",
        ),
    ),
    "S8": Entry(
        statement="A second release is harmless, and adds no slot.",
        tests=(
            "test_pool.py::test_second_release_does_nothing",
            "test_pool.py::test_release_during_a_release_counts_once",
            "test_isolation.py::test_block_that_released_by_hand_does_not_release_the_next_lease",
        ),
    ),
    "S9": Entry(
        statement="A lent response is still lent, once, when its request had to be sent again.",
        tests=(
            "test_pool_scenarios.py::test_stream_that_was_sent_again_holds_one_connection_until_its_block_ends",
            "test_retries.py::test_answer_that_was_asked_for_again_reads_nothing_of_the_next",
        ),
    ),
    "S10": Entry(
        statement="After a partial read, draining the rest gives the connection back.",
        tests=(
            "test_pool.py::test_rest_within_the_bound_is_drained_and_the_connection_kept",
            "test_response.py::test_closing_an_unread_response_drains_a_short_rest",
        ),
    ),
    "S11": Entry(
        statement="Closing an unread response closes the socket, and the peer sees it.",
        tests=(
            "test_pool_scenarios.py::test_peer_sees_the_end_of_a_connection_whose_long_response_is_closed_unread",
            "test_response.py::test_closing_an_unread_response_with_a_long_or_slow_rest_closes_the_connection",
            "test_pool.py::test_rest_beyond_the_bound_closes_the_connection",
        ),
        reason="A short rest that is there at once is read instead, and the connection kept.",
    ),
    "S12": Entry(
        statement="A file that was made from the socket stays readable after the connection was closed.",
        tests=(
            "test_pool_scenarios.py::test_file_made_from_the_socket_is_readable_after_its_connection_is_back",
            "test_response.py::test_connection_that_is_closed_leaves_its_socket_to_a_response_that_says_close",
            "test_compatibility.py::test_socket_that_is_taken_leaves_the_response_readable",
        ),
    ),
    "S13": Entry(
        statement="A blocked read is woken by a shutdown from another thread.",
        tests=("test_pool_scenarios.py::test_read_that_blocks_is_woken_by_a_shutdown_from_another_thread",),
        reason="A response has no shutdown() of its own: the documented `conn.sock` has one.",
    ),
    "S14": Entry(
        statement="Nothing can be done to a connection through a response whose lease is over.",
        tests=(
            "test_pool.py::test_response_cannot_be_read_on_after_its_stream",
            "test_response.py::test_drain_cuts_the_response_off",
        ),
        reason="There is no shutdown() on a response that could be refused; reading is, since the response is cut off "
        "from its connection when the lease ends.",
    ),
    "S15": Entry(
        statement="The limits of a request hold on a reused connection too, and those of the one before do not.",
        tests=(
            "test_pool.py::test_limits_that_a_borrower_set_do_not_outlive_its_lease",
            "test_pool.py::test_total_of_a_lease_holds_for_its_exchanges_and_no_longer",
            "test_conn.py::test_next_lease_has_limits_of_its_own",
            "test_pool_faults.py::test_nothing_is_sent_again_after_a_timeout",
        ),
    ),
    "S16": Entry(
        statement="The count of connections is 1 for requests in sequence, and n for n at the same time.",
        tests=(
            "test_pool_scenarios.py::test_requests_one_after_the_other_share_one_connection",
            "test_pool_scenarios.py::test_requests_at_the_same_time_have_a_connection_each",
            "test_metrics.py::test_acquires_that_open_and_that_reuse_are_counted",
        ),
    ),
    # The limit of the pool
    "S17": Entry(
        statement="Waiting for a connection of a full pool ends in time.",
        tests=(
            "test_pool.py::test_waiting_ends_by_its_limit",
            "test_pool.py::test_acquire_timeout_tells_who_holds_what",
            "test_waiting.py::test_looking_again_does_not_restart_the_limit_of_a_wait",
        ),
    ),
    "S18": Entry(
        statement="A connection that comes back to a pool without room for it is closed.",
        tests=(
            "test_capacity.py::test_smaller_pool_lets_leases_end_and_closes_them_when_they_come_back",
            "test_pool.py::test_never_more_connections_than_maxsize",
        ),
        reason="maxsize is a hard limit, so that there is always room, unless resize() has lowered it meanwhile; no "
        "surplus is opened and thrown away.",
    ),
    "S19": Entry(
        statement="Giving back to a full pool does not wait.",
        tests=("test_pool.py::test_never_more_connections_than_maxsize",),
        reason="release() never waits and has no error for a full pool: what comes back had its slot all the time.",
    ),
    "S20": Entry(
        statement="A connection that comes back to a closed pool is closed.",
        tests=(
            "test_pool.py::test_lease_is_finished_and_closed_when_the_pool_has_been_closed_meanwhile",
            "test_manager.py::test_lent_connection_is_closed_when_it_comes_back_to_a_closed_manager",
        ),
    ),
    "S21": Entry(
        statement="Closing a pool closes its idle sockets; a second time is fine.",
        tests=(
            "test_pool.py::test_closing_ends_the_idle_connections_at_once",
            "test_pool.py::test_closing_twice_is_fine",
            "test_manager.py::test_closed_manager_serves_nobody",
        ),
    ),
    "S22": Entry(
        statement="An error or an interruption while a connection is made does not shrink the pool.",
        tests=(
            "test_pool_faults.py::test_refused_connection_frees_the_slot",
            "test_pool_faults.py::test_interruption_anywhere_in_a_lease_closes_the_connection_and_frees_the_slot",
            "test_pool_faults.py::test_failure_to_connect_hands_the_slot_to_the_oldest_waiter",
            "test_interruptions.py::test_exception_at_any_line_leaves_the_pool_whole",
        ),
    ),
    "S23": Entry(
        statement="A malformed timeout costs no slot, and is the error that the caller sees.",
        tests=(
            "test_pool.py::test_timeout_that_is_no_length_of_time_is_refused_before_anything_is_opened",
            "test_security.py::test_urllib3_5059_malformed_timeout_costs_no_slot",
            "test_bad_input.py::test_malformed_lease_leaves_a_pooled_connection_as_it_is",
        ),
    ),
    "S24": Entry(
        statement="A request that is tried again in a pool of one connection does not wait for itself.",
        tests=(
            "test_retries.py::test_waiting_call_holds_no_connection",
            "test_retries.py::test_waiting_call_holds_no_slot_after_a_failure",
            "test_pool_faults.py::test_request_that_may_be_repeated_is_sent_again_on_a_new_connection",
            "test_waiting.py::test_request_inside_a_block_that_holds_the_only_connection_is_told",
        ),
        reason="Redirects are not followed. Code that does wait for itself gets a SelfDeadlock at once.",
    ),
    "S25": Entry(
        statement="A response that cannot be drained before the next attempt costs no slot.",
        tests=(
            "test_pool_scenarios.py::test_rest_that_cannot_be_drained_before_a_retry_costs_no_slot",
            "test_retries.py::test_unread_answer_that_is_too_long_costs_its_connection_and_no_more",
        ),
    ),
    "S26": Entry(
        statement="The connection that came back last is lent first.",
        tests=(
            "test_pool.py::test_newest_idle_connection_is_lent_first",
            "test_pool.py::test_connection_that_came_back_during_a_prune_is_lent_before_those_that_were_pruned",
        ),
        reason="The order is the pool's own; there is no queue class to replace.",
    ),
    # Time limits
    "S27": Entry(
        statement="A black hole is left at the connect limit.",
        tests=(
            "test_pool_faults.py::test_black_hole_is_left_in_time_and_frees_the_slot",
            "test_dial.py::test_black_hole_is_a_connect_timeout",
        ),
    ),
    "S28": Entry(
        statement="Silence before the head ends at the read limit.",
        tests=("test_pool_faults.py::test_silence_is_ended_by_the_read_limit",),
    ),
    "S29": Entry(
        statement="Silence in the body ends at the read limit, whoever reads it.",
        tests=(
            "test_pool_faults.py::test_silence_is_ended_by_the_read_limit",
            "test_pool.py::test_stream_whose_body_stalls_is_counted_as_a_timeout",
        ),
    ),
    "S30": Entry(
        statement="The total bounds connecting as well.",
        tests=(
            "test_pool_faults.py::test_black_hole_is_left_in_time_and_frees_the_slot",
            "test_dial.py::test_black_hole_ends_at_the_total_of_the_call",
            "test_waiting.py::test_total_is_one_over_waiting_and_dialling",
        ),
    ),
    "S31": Entry(
        statement="A limit of zero is never read as a broken answer.",
        tests=(
            "test_pool_scenarios.py::test_zero_is_no_limit_for_a_call",
            "test_pool_scenarios.py::test_lease_that_may_not_wait_is_opened_and_works_like_any_other",
            "test_pool_scenarios.py::test_socket_that_its_borrower_made_nonblocking_has_no_bad_status_line",
            "test_timeouts.py::test_acquire_may_be_zero_and_nothing_else",
            "test_conn.py::test_option_that_makes_no_sense_is_refused",
        ),
        reason="Zero is refused everywhere but for waiting, where it means not to wait.",
    ),
    "S32": Entry(
        statement="A connection whose read limit fired is closed, whoever was reading.",
        tests=(
            "test_pool_faults.py::test_silence_is_ended_by_the_read_limit",
            "test_pool_faults.py::test_slow_loris_is_ended_by_the_total",
            "test_conn.py::test_documented_timeout_bounds_each_read",
        ),
    ),
    "S33": Entry(
        statement="A TLS handshake that stalls and silence over TLS end in time.",
        tests=(
            "test_pool_faults.py::test_handshake_that_stalls_is_bounded_by_the_connect_limit",
            "test_tls.py::test_stalled_handshake_ends_at_the_total",
            "test_tls.py::test_silence_is_a_read_timeout_that_names_the_origin",
            "test_tls.py::test_trickling_body_ends_at_the_total",
        ),
    ),
    "S34": Entry(
        statement="After a timeout only what may be repeated is tried again, and only where that was asked for.",
        tests=(
            "test_retries.py::test_idempotent_request_that_got_no_answer_is_tried_again",
            "test_retries.py::test_post_is_never_sent_again_once_it_may_have_arrived",
            "test_pool_faults.py::test_nothing_is_sent_again_after_a_timeout",
        ),
    ),
    "S35": Entry(
        statement="The limits hold at and behind a proxy.",
        tests=(
            "test_tunnel.py::test_answer_that_does_not_come_in_time_is_a_connect_timeout",
            "test_tunnel.py::test_answer_that_does_not_come_in_time_ends_at_the_total",
            "test_tunnel.py::test_silence_behind_the_tunnel_ends_at_the_documented_timeout",
        ),
        reason="Every proxy is used through a CONNECT tunnel, for http too; nothing is forwarded.",
    ),
    # Broken peers
    "S36": Entry(
        statement="A refused connection is a ConnectionRefusedError at once, and frees its slot.",
        tests=(
            "test_pool_faults.py::test_refused_connection_frees_the_slot",
            "test_dial.py::test_refusal_passes_untouched",
        ),
    ),
    "S37": Entry(
        statement="A response that breaks off is an error however it is read.",
        tests=(
            "test_pool_faults.py::test_truncated_body_is_an_incomplete_read",
            "test_pool_faults.py::test_incomplete_read_holds_what_came",
            "test_response.py::test_end_within_the_head_is_an_error",
        ),
    ),
    "S38": Entry(
        statement="What has no HTTP/1 status line is an error.",
        tests=(
            "test_pool_faults.py::test_answer_that_is_no_http_ends_the_connection",
            "test_response.py::test_what_is_no_http_is_a_bad_status_line",
            "test_wire.py::test_anything_but_a_status_line_of_http_1_is_refused",
        ),
    ),
    "S39": Entry(
        statement="A broken protocol within the body closes the connection.",
        tests=(
            "test_response.py::test_malformed_chunk_framing_is_an_error_and_closes_the_connection",
            "test_pool_faults.py::test_answer_that_is_no_http_ends_the_connection",
        ),
    ),
    "S40": Entry(
        statement="When sending fails, an answer that came before is still delivered.",
        tests=(
            "test_uploads.py::test_early_refusal_reaches_the_caller_of_a_pool_and_nothing_is_sent_again",
            "test_uploads.py::test_early_refusal_can_be_streamed",
            "test_conn.py::test_early_answer_is_delivered_although_the_peer_stopped_reading",
        ),
    ),
    "S41": Entry(
        statement="A length that the body does not reach is an error, but not where there is no body.",
        tests=(
            "test_pool_faults.py::test_truncated_body_is_an_incomplete_read",
            "test_response.py::test_response_without_a_body_is_complete_with_its_head",
        ),
        reason="It always is; there is no switch.",
    ),
    "S42": Entry(
        statement="An answer to HEAD is complete with its head, whatever its fields say.",
        tests=(
            "test_security.py::test_cpython_157951_answer_that_has_no_body_is_not_waited_for",
            "test_response.py::test_response_without_a_body_is_complete_with_its_head",
            "test_wire.py::test_answer_to_head_has_no_body_whatever_its_fields_say",
        ),
    ),
    "S43": Entry(
        statement="Streaming a body that is not in chunks ends with the body.",
        tests=(
            "test_pool_scenarios.py::test_pieces_of_a_body_with_a_length_end_although_the_connection_does_not",
            "test_response.py::test_body_is_read_to_its_end",
        ),
    ),
    "S44": Entry(
        statement="A header line without name, value or colon neither fails nor hides the lines behind it.",
        tests=(
            "test_pool_scenarios.py::test_line_that_lacks_its_name_value_or_colon_hides_nothing",
            "test_wire.py::test_line_without_a_field_hides_nothing_behind_it_but_the_connection_is_not_used_again",
        ),
        reason="Its connection is not used again, unless it is only the value that is empty.",
    ),
    "S45": Entry(
        statement="A header line over the limit is an error.",
        tests=(
            "test_pool_faults.py::test_answer_that_is_no_http_ends_the_connection",
            "test_wire.py::test_line_over_the_limit_is_too_long",
            "test_wire.py::test_line_of_exactly_the_limit_is_read",
        ),
    ),
    "S46": Entry(
        statement="A proxy that ends within its answer to CONNECT is an error, and no loop.",
        tests=("test_tunnel.py::test_misbehaviour_of_the_proxy_is_an_error_and_closes_the_connection",),
    ),
    "S47": Entry(
        statement="Two lengths that differ are an error.",
        tests=(
            "test_pool_faults.py::test_answer_that_is_no_http_ends_the_connection",
            "test_security.py::test_cve_2023_47641_different_lengths_are_an_error",
            "test_wire.py::test_different_lengths_are_an_error",
        ),
    ),
    "S48": Entry(
        statement="Reading nothing takes nothing, and reading a closed response gives nothing.",
        tests=(
            "test_pool_scenarios.py::test_response_that_was_closed_reads_as_empty",
            "test_response.py::test_reading_nothing_takes_nothing",
            "test_response.py::test_finished_response_reads_as_empty_in_every_way",
        ),
        reason="As in http.client, a closed response reads as empty instead of raising.",
    ),
    # What is sent
    "S49": Entry(
        statement="A missing body is told by Content-Length: 0 where one is expected, and by nothing elsewhere.",
        tests=(
            "test_request.py::test_request_that_lacks_its_expected_body_says_so",
            "test_request.py::test_request_without_a_body_tells_no_length",
            "test_conn.py::test_missing_body_is_told_where_one_is_expected",
        ),
    ),
    "S50": Entry(
        statement="Bodies of unknown length go in chunks, once; a length or coding of the caller is kept.",
        tests=(
            "test_uploads.py::test_body_of_every_kind_arrives_whole_from_a_pool",
            "test_uploads.py::test_body_that_the_caller_has_put_into_chunks_is_sent_as_it_is",
            "test_isolation.py::test_pool_puts_a_body_into_chunks_when_the_caller_announces_them",
            "test_request.py::test_body_without_a_known_length_is_sent_in_chunks",
            "test_request.py::test_length_of_the_caller_is_kept",
            "test_request.py::test_transfer_encoding_of_the_caller_is_kept_and_applied_when_asked",
        ),
    ),
    "S51": Entry(
        statement="A body in chunks is in chunks again when its request is sent again.",
        tests=("test_pool_scenarios.py::test_body_in_chunks_is_in_chunks_when_it_is_sent_again",),
        reason="After a broken connection and after Retry-After; redirects are not followed.",
    ),
    "S52": Entry(
        statement="What of a body was consumed is never missing from a request that is sent again.",
        tests=(
            "test_retries.py::test_body_that_can_be_had_only_once_is_sent_once",
            "test_pool_faults.py::test_request_that_may_not_be_repeated_is_never_sent_again",
            "test_uploads.py::test_reset_of_a_kept_alive_connection_during_an_upload_is_sent_again_only_if_it_can_be",
            "test_request.py::test_body_that_is_consumed_cannot_be_sent_again",
        ),
        reason="Files are not rewound: a body that was begun, and can be had only once, is not sent a second time.",
    ),
    "S53": Entry(
        statement="Fields keep order and case, there is one Host, and the caller's fields replace ours.",
        tests=(
            "test_pool_scenarios.py::test_fields_keep_their_order_and_case_and_none_of_ours_says_who_is_calling",
            "test_conn.py::test_fields_of_the_caller_replace_ours",
            "test_isolation.py::test_second_host_field_is_refused",
        ),
        reason="There is no User-Agent of ours to be overridden or left out; a second Host is refused, not removed.",
    ),
    "S54": Entry(
        statement="The root dot of a name stays in the Host field.",
        tests=("test_pool_scenarios.py::test_root_dot_stays_in_the_host_field_and_out_of_the_name_that_tls_asks_for",),
    ),
    "S55": Entry(
        statement="Control characters and separators in host, method, target and tunnel settings are refused.",
        tests=(
            "test_bad_input.py::*",
            "test_security.py::test_cve_2019_9740_control_or_space_in_the_target_is_refused",
            "test_security.py::test_cve_2022_27780_separator_in_the_host_is_refused",
            "test_tunnel.py::test_host_that_would_break_the_request_is_refused",
            "test_tunnel.py::test_header_that_would_break_the_request_is_refused",
        ),
        reason="What follows a % in a target is the caller's affair: targets are sent as they are given.",
    ),
    "S56": Entry(
        statement="The fragment of a URL is not sent.",
        tests=("test_manager.py::test_target_is_sent_without_the_fragment",),
        reason="No target is ever in absolute form, since nothing is forwarded by a proxy.",
    ),
    "S57": Entry(
        statement="An IPv6 literal has its brackets in CONNECT, and port 0 is not the default port.",
        tests=(
            "test_tunnel.py::test_ipv6_literal_has_brackets",
            "test_pool_scenarios.py::test_port_0_is_not_the_default_port",
            "test_origin.py::test_host_and_port_are_split",
        ),
    ),
    # TLS and proxies
    "S58": Entry(
        statement="A certificate that is expired, for another name, for none, or of an unknown authority is refused.",
        tests=(
            "test_pool_faults.py::test_certificate_that_does_not_hold_is_refused_and_never_tried_again",
            "test_security.py::test_cve_2014_9365_certificate_for_another_name_is_refused",
            "test_security.py::test_cve_2019_11324_certificate_that_does_not_hold_is_refused",
        ),
        reason="Fingerprints are not compared by us: an SSLContext that trusts one certificate alone does it.",
    ),
    "S59": Entry(
        statement="A handshake that fails leaves no descriptor open.",
        tests=(
            "test_pool_faults.py::test_handshake_that_fails_frees_the_slot",
            "test_tls.py::test_server_that_speaks_no_tls_is_an_ssl_error",
            "test_nginx.py::test_connection_that_is_reset_before_the_handshake_is_an_error_and_leaves_no_descriptor",
        ),
    ),
    "S60": Entry(
        statement="A client's certificate is shown where it is asked for, password or not; none is an error.",
        tests=(
            "test_pool_scenarios.py::test_server_that_asks_for_a_certificate_in_vain_is_an_error_and_asked_once",
            "test_pool_scenarios.py::test_certificate_of_the_client_may_have_a_key_with_a_password",
            "test_tls.py::test_certificate_of_the_client_is_shown",
            "test_tls.py::test_missing_certificate_file_is_an_error",
        ),
    ),
    "S61": Entry(
        statement="A proxy's refusal is an error that tells its status, fields and body.",
        tests=(
            "test_pool_faults.py::test_refusal_of_the_proxy_is_told_and_frees_the_slot",
            "test_tunnel.py::test_refusal_tells_status_headers_and_body",
        ),
    ),
    "S62": Entry(
        statement="A tunnel that was dropped is asked for again, with its own fields and no others.",
        tests=(
            "test_pool_scenarios.py::test_tunnel_that_the_proxy_dropped_is_asked_for_again",
            "test_tunnel.py::test_tunnel_is_asked_for_again_after_the_connection_was_closed",
            "test_security.py::test_cve_2026_9079_tunnel_that_is_asked_for_anew_has_none_of_the_fields_before",
        ),
    ),
    "S63": Entry(
        statement="TLS to the proxy is verified apart from TLS to the origin.",
        tests=(
            "test_security.py::test_cve_2021_28363_tls_to_the_proxy_itself_is_refused_not_left_unverified",
            "test_tunnel.py::test_tls_begins_inside_the_tunnel_and_verifies_the_origin",
            "test_tunnel.py::test_certificate_of_somebody_else_inside_the_tunnel_is_refused",
        ),
        reason="TLS to the proxy itself is not supported, and refused instead of left unverified.",
    ),
    "S64": Entry(
        statement="Credentials for the proxy reach nobody else.",
        tests=(
            "test_security.py::test_cve_2014_1830_credentials_for_the_proxy_never_reach_the_origin",
            "test_tunnel.py::test_proxy_is_told_the_tunnel_fields_and_nothing_else",
        ),
    ),
    "S65": Entry(
        statement="Proxy and its fields belong to the key of a pool.",
        tests=(
            "test_manager.py::test_each_setting_of_a_route_leads_to_a_pool_of_its_own",
            "test_security.py::test_cve_2026_3784_credentials_for_a_proxy_have_tunnels_of_their_own",
            "test_security.py::test_cve_2022_27782_pools_that_differ_in_one_setting_never_share_a_connection",
        ),
    ),
    "S66": Entry(
        statement="The handshake asks for the origin's name without its root dot, and for http/1.1, in a tunnel too.",
        tests=(
            "test_pool_scenarios.py::test_tls_inside_a_tunnel_asks_for_the_origins_name_and_for_http_1_1",
            "test_pool_scenarios.py::test_root_dot_stays_in_the_host_field_and_out_of_the_name_that_tls_asks_for",
            "test_compatibility.py::test_default_context_offers_http_1_1",
            "test_tls.py::test_name_is_verified_without_its_root_dot",
        ),
        reason="An SSLContext of the caller is left as it is, its ALPN included.",
    ),
    "S67": Entry(
        statement="An odd spelling of an address passes for no name that a certificate covers.",
        tests=("test_security.py::test_urllib3_5029_odd_spelling_of_an_address_is_no_name_that_a_certificate_covers",),
        reason="It is not taken for an address either: the handshake fails.",
    ),
}

FAULTS: Final[Mapping[str, Entry]] = {
    # The end of a connection
    "F1": Entry(
        statement="The peer's end while a connection is idle is seen at checkout; the caller sees nothing.",
        tests=(
            "test_pool_faults.py::test_end_of_an_idle_connection_is_seen_at_checkout_and_never_read_as_an_answer",
            "test_pool_faults.py::test_end_of_an_idle_tls_connection_is_seen_at_checkout",
            "test_pool_faults.py::test_every_dead_idle_connection_is_replaced_until_a_live_one_is_found",
            "test_metrics.py::test_end_of_an_idle_connection_by_its_server_is_counted",
        ),
    ),
    "F2": Entry(
        statement="An end that crosses the request: sent once more on a new connection where HTTP allows it, and the "
        "older idle connections are dropped; else an error.",
        tests=(
            "test_pool_faults.py::test_request_that_may_be_repeated_is_sent_again_on_a_new_connection",
            "test_pool_faults.py::test_request_that_may_not_be_repeated_is_never_sent_again",
            "test_pool_faults.py::test_request_is_sent_again_only_once",
            "test_pool_faults.py::test_nothing_is_sent_again_after_a_fresh_connection_died",
            "test_pool_faults.py::test_nothing_is_sent_again_when_that_is_turned_off",
            "test_pool_faults.py::test_first_stale_hit_ends_the_idle_connections_that_are_older",
        ),
    ),
    "F3": Entry(
        statement="An end within the head is an error, and nothing is sent again.",
        tests=(
            "test_response.py::test_end_within_the_head_is_an_error",
            "test_pool_faults.py::test_nothing_is_sent_again_once_a_byte_of_the_answer_came",
        ),
    ),
    "F4": Entry(
        statement="A reset within the body is a ConnectionResetError from the read; the slot is free.",
        tests=(
            "test_pool_faults.py::test_reset_within_the_body_is_raised_from_the_read",
            "test_response.py::test_reset_within_a_body_is_a_connection_error",
        ),
    ),
    "F5": Entry(
        statement="When the peer ends its side behind a complete response, it is delivered, and the connection gone.",
        tests=(
            "test_pool_faults.py::test_end_of_an_idle_connection_is_seen_at_checkout_and_never_read_as_an_answer",
            "test_security.py::test_cve_2026_48931_end_right_behind_the_body_is_no_premature_close",
            "test_uploads.py::test_peer_that_answers_and_ends_its_side_while_it_reads_on_is_delivered",
        ),
    ),
    "F6": Entry(
        statement="A 408 on an idle connection answers nobody, whether it is seen at checkout or crosses the request.",
        tests=(
            "test_pool_faults.py::test_end_of_an_idle_connection_is_seen_at_checkout_and_never_read_as_an_answer",
            "test_pool_faults.py::test_late_408_that_crosses_the_request_is_no_answer_to_it",
            "test_pool_faults.py::test_408_that_answers_the_request_is_delivered",
        ),
    ),
    "F7": Entry(
        statement="Bytes on an idle connection are nobody's answer: it is closed at checkout, and that is counted.",
        tests=(
            "test_pool_faults.py::test_end_of_an_idle_connection_is_seen_at_checkout_and_never_read_as_an_answer",
            "test_pool_faults.py::test_end_of_an_idle_connection_is_seen_by_prune",
            "test_isolation.py::test_bytes_between_two_requests_of_one_lease_are_nobodys_answer",
            "test_metrics.py::test_end_of_a_connection_is_counted",
        ),
    ),
    "F8": Entry(
        statement="Bytes behind a complete response: it is delivered, the connection closed, and that is counted.",
        tests=(
            "test_pool_faults.py::test_bytes_behind_a_complete_response_end_the_connection_and_reach_nobody",
            "test_properties.py::test_pool_never_gives_bytes_behind_a_response_to_the_next_caller",
            "test_metrics.py::test_end_of_a_connection_is_counted",
        ),
    ),
    # The body of the request
    "F9": Entry(
        statement="An answer that comes before the body was sent ends the sending and is delivered.",
        tests=(
            "test_uploads.py::test_early_refusal_stops_the_upload_and_is_delivered",
            "test_uploads.py::test_early_refusal_reaches_the_caller_of_a_pool_and_nothing_is_sent_again",
            "test_uploads.py::test_early_refusal_on_a_kept_alive_connection_is_no_stale_one",
            "test_uploads.py::test_peer_that_gives_up_without_an_answer_frees_its_slot_and_nothing_is_sent_again",
        ),
    ),
    "F10": Entry(
        statement="When 100 Continue does not come the body is sent after the wait; a final answer instead stops it.",
        tests=(
            "test_expect_continue.py::test_body_follows_after_the_wait_when_the_server_says_nothing",
            "test_expect_continue.py::test_final_answer_is_delivered_and_the_body_never_sent",
            "test_expect_continue.py::test_cve_2024_24791_connection_is_not_used_again_unless_the_body_was_sent",
        ),
    ),
    # The body of the response
    "F11": Entry(
        statement="A body shorter than its length is an IncompleteRead, in a loop of small reads too; never pooled.",
        tests=(
            "test_pool_faults.py::test_truncated_body_is_an_incomplete_read",
            "test_pool_faults.py::test_incomplete_read_holds_what_came",
            "test_response.py::test_truncated_body_is_an_error_and_closes_the_connection",
        ),
        reason="http.client ends such a loop without an error.",
    ),
    "F12": Entry(
        statement="Chunks without their end are an IncompleteRead; the last line end alone may be missing.",
        tests=(
            "test_pool_faults.py::test_truncated_body_is_an_incomplete_read",
            "test_compatibility.py::test_last_line_end_may_be_missing",
            "test_properties.py::test_response_that_is_cut_off_is_never_taken_for_a_whole_one",
        ),
    ),
    "F13": Entry(
        statement="A response that trickles ends at the total, and so does the draining of one.",
        tests=(
            "test_pool_faults.py::test_slow_loris_is_ended_by_the_total",
            "test_contention.py::test_trickling_response_ends_at_its_total",
            "test_pool.py::test_rest_that_does_not_come_in_time_closes_the_connection",
        ),
    ),
    "F14": Entry(
        statement="Endless heads, interim answers, trailers and chunk extensions end within limits, in flat memory.",
        tests=(
            "test_response.py::test_endless_framing_ends_within_the_limits",
            "test_security.py::test_cve_2023_38039_endless_headers_end_within_the_limits",
            "test_security.py::test_cve_2021_3737_endless_interim_answers_end_within_the_limits",
            "test_security.py::test_cve_2026_22815_endless_trailers_end_within_the_limits",
            "test_security.py::test_cve_2023_39326_endless_chunk_extensions_end_within_the_limits",
        ),
    ),
    # Connecting
    "F15": Entry(
        statement="A name that does not resolve frees the slot, and is looked up again; all its addresses share one "
        "deadline.",
        tests=(
            "test_pool_faults.py::test_name_that_does_not_resolve_frees_the_slot_and_is_looked_up_again",
            "test_dial.py::test_one_deadline_bounds_all_addresses",
            "test_dial.py::test_working_address_behind_a_refusing_one_is_found",
            "test_retries.py::test_name_that_does_not_resolve_is_tried_again",
        ),
    ),
    "F16": Entry(
        statement="A refused connection is an error at once, and the pool keeps its slots.",
        tests=(
            "test_pool_faults.py::test_refused_connection_frees_the_slot",
            "test_pool.py::test_acquire_timeout_tells_the_last_failure_to_connect",
        ),
        reason="The system's own error passes untouched; what the pool says of it names the origin.",
    ),
    "F17": Entry(
        statement="A black hole ends at the connect limit, over all addresses.",
        tests=(
            "test_pool_faults.py::test_black_hole_is_left_in_time_and_frees_the_slot",
            "test_dial.py::test_one_deadline_bounds_all_addresses",
            "test_dial.py::test_working_address_behind_a_black_hole_is_found",
            "test_waiting.py::test_caller_in_front_of_a_black_hole_takes_a_connection_that_is_given_back",
        ),
    ),
    "F18": Entry(
        statement="A handshake that stalls ends at the same connect limit; its descriptor is closed.",
        tests=(
            "test_pool_faults.py::test_handshake_that_stalls_is_bounded_by_the_connect_limit",
            "test_dial.py::test_tls_stall_ends_at_the_lesser_limit",
            "test_tls.py::test_stalled_handshake_ends_at_the_connect_limit_of_a_lender",
        ),
    ),
    "F19": Entry(
        statement="A certificate that does not hold is an SSLCertVerificationError, once, and no stale connection.",
        tests=(
            "test_pool_faults.py::test_certificate_that_does_not_hold_is_refused_and_never_tried_again",
            "test_retries.py::test_certificate_that_fails_is_not_tried_again",
        ),
    ),
    "F20": Entry(
        statement="A proxy that refuses is a TunnelError with status, fields and a bounded body; the socket is closed.",
        tests=(
            "test_pool_faults.py::test_refusal_of_the_proxy_is_told_and_frees_the_slot",
            "test_tunnel.py::test_refusal_tells_status_headers_and_body",
            "test_tunnel.py::test_body_of_a_refusal_that_does_not_come_ends_at_the_deadline",
        ),
    ),
    "F21": Entry(
        statement="A proxy that ends or never ends its answer to CONNECT is an error, and no loop.",
        tests=("test_tunnel.py::test_misbehaviour_of_the_proxy_is_an_error_and_closes_the_connection",),
    ),
    # Restarts and ages
    "F22": Entry(
        statement="A restart with every connection idle costs no idempotent caller an error, nor any other one if the "
        "end had arrived.",
        tests=(
            "test_pool_faults.py::test_restart_of_the_server_is_invisible_to_idempotent_callers",
            "test_pool_scenarios.py::test_restart_whose_end_has_arrived_is_invisible_to_callers_that_may_not_repeat",
            "test_nginx.py::test_idempotent_request_fails_only_while_nothing_listens",
            "test_nginx.py::test_no_idempotent_request_fails_on_a_kept_alive_connection",
            "test_nginx.py::test_no_idempotent_request_fails_at_all_with_retry",
            "test_nginx.py::test_no_post_is_received_twice",
        ),
    ),
    "F23": Entry(
        statement="Where the end never arrives, ages bound how long it matters, and one silence is enough to know.",
        tests=(
            "test_expiry.py::test_silence_after_a_long_idle_time_clears_the_older_ones",
            "test_pool.py::test_idle_connection_past_a_limit_is_not_lent_again",
            "test_pool.py::test_connections_of_one_moment_do_not_end_in_one_moment",
            "test_dial.py::test_socket_options_are_set_before_connecting",
        ),
        reason="TCP keepalive is a socket option, for whoever wants it.",
    ),
    "F24": Entry(
        statement="What the server announces in Keep-Alive bounds the idle time, with a margin.",
        tests=(
            "test_pool.py::test_shorter_idle_time_that_the_server_announces_holds",
            "test_expiry.py::test_announced_idle_time_is_taken_a_second_earlier",
            "test_pool.py::test_connection_that_the_server_is_about_to_end_is_not_kept",
        ),
    ),
    # Interruptions and ownership
    "F25": Entry(
        statement="Any exception between checkout and completion closes the connection and frees the slot.",
        tests=(
            "test_pool_faults.py::test_interruption_anywhere_in_a_lease_closes_the_connection_and_frees_the_slot",
            "test_pool_faults.py::test_interruption_of_the_borrower_closes_the_connection_and_frees_the_slot",
            "test_pool_faults.py::test_generator_that_is_closed_in_the_middle_of_a_stream_frees_the_slot",
            "test_pool_faults.py::test_interruption_at_any_look_at_the_clock_frees_the_slot",
            "test_uploads.py::test_body_that_fails_midway_frees_its_slot",
        ),
    ),
    "F26": Entry(
        statement="An exception at any line of acquire and release leaves the books in order.",
        tests=(
            "test_interruptions.py::test_exception_at_any_line_leaves_the_pool_whole",
            "test_pool_machine.py::test_pool_does_what_its_model_does_whatever_happens",
        ),
    ),
    "F27": Entry(
        statement="A thread that ends with a connection frees its slot; that is warned of once, and counted.",
        tests=(
            "test_pool_scenarios.py::test_thread_that_ends_with_a_connection_frees_its_slot",
            "test_pool.py::test_waiter_gets_the_slot_of_a_dropped_connection",
            "test_security.py::test_redis_py_1578_collecting_a_lost_lease_under_the_lock_of_its_pool_is_no_deadlock",
            "test_pool.py::test_explain_names_the_thread_even_when_it_has_ended",
        ),
    ),
    "F28": Entry(
        statement="After a fork parent and child both go on working, TLS included, and the peer hears nothing of it.",
        tests=(
            "test_fork.py::test_parent_and_child_both_go_on_working",
            "test_fork.py::test_child_has_closed_its_copies",
            "test_fork.py::test_peer_hears_nothing_of_a_child",
            "test_fork.py::test_connection_that_is_lent_at_the_fork_raises_in_the_child",
            "test_fork.py::test_child_has_a_new_lock_where_the_parents_was_held",
            "test_fork.py::test_hundred_forks_beside_eight_threads_hang_no_child_and_fail_no_request",
            "test_fork_servers.py::*",
        ),
    ),
    # The system
    "F29": Entry(
        statement="Without a free descriptor idle connections of other origins go, once; then it is an error.",
        tests=(
            "test_pool_faults.py::test_lack_of_descriptors_is_told_and_frees_the_slot",
            "test_capacity.py::test_idle_connections_of_other_pools_give_their_descriptors",
            "test_capacity.py::test_lack_of_files_in_the_whole_system_is_met_in_the_same_way",
            "test_capacity.py::test_there_is_one_further_try_and_no_more",
        ),
    ),
    "F30": Entry(
        statement="Without a free source port the next source address is tried, then it is an error with advice.",
        tests=(
            "test_dial.py::test_next_source_address_is_tried_when_the_ports_of_one_are_taken",
            "test_dial.py::test_exhausted_ports_of_the_machine_are_told",
            "test_dial.py::test_port_of_a_bound_socket_is_chosen_at_connect",
            "test_pool_scenarios.py::test_source_port_that_is_taken_is_told_at_once_and_costs_no_slot",
        ),
    ),
    "F31": Entry(
        statement="A source address of another machine is an error that frees the slot.",
        tests=(
            "test_pool_scenarios.py::test_source_address_of_another_machine_is_told_and_costs_no_slot",
            "test_dial.py::test_source_address_of_another_machine_is_named",
        ),
    ),
    "F32": Entry(
        statement="A jump of the wall clock changes nothing.",
        tests=(
            "test_pool_scenarios.py::test_wall_clock_decides_nothing",
            "test_timeouts.py::test_only_the_monotonic_clock_is_read_by_default",
        ),
        reason="What died while the machine slept is found by the probe at checkout, as ever.",
    ),
    "F33": Entry(
        statement="At the end of the process nothing keeps it alive, and nothing is printed.",
        tests=("test_pool_scenarios.py::test_pools_in_use_neither_keep_the_process_alive_nor_print_at_its_end",),
    ),
    "F34": Entry(
        statement="A response that is collected unread frees its slot and closes the socket, with one warning.",
        tests=(
            "test_pool_scenarios.py::test_response_that_is_dropped_unread_frees_its_slot_and_ends_its_connection",
            "test_ownership.py::test_each_dropped_connection_costs_one_warning_and_frees_its_slot",
            "test_metrics.py::test_connection_collected_while_lent_is_counted",
        ),
    ),
    "F35": Entry(
        statement="A pool closed in use: leases finish and are closed, waiters are told at once, others refused.",
        tests=(
            "test_pool.py::test_lease_is_finished_and_closed_when_the_pool_has_been_closed_meanwhile",
            "test_pool.py::test_waiters_are_told_at_once_that_the_pool_is_closed",
            "test_pool.py::test_closed_pool_lends_no_more",
            "test_pool.py::test_closing_twice_is_fine",
            "test_pool_stress.py::test_closing_races_with_acquirers_and_leaves_nothing",
        ),
    ),
    "F36": Entry(
        statement="A signal neither ends nor prolongs a wait, unless its handler raises: then the slot is free.",
        tests=(
            "test_pool_scenarios.py::test_signal_whose_handler_returns_does_not_end_a_wait",
            "test_pool_scenarios.py::test_signals_do_not_prolong_a_limit",
            "test_pool_scenarios.py::test_signal_whose_handler_raises_ends_the_wait_for_an_answer",
            "test_pool_scenarios.py::test_signal_whose_handler_raises_ends_the_wait_for_a_connection",
        ),
    ),
    "F37": Entry(
        statement="Of two threads on one connection the second is refused; their bytes never mix.",
        tests=(
            "test_conn_states.py::test_second_thread_that_sends_a_request_is_refused",
            "test_conn_states.py::test_second_thread_that_wants_the_response_is_refused",
            "test_pool_stress.py::test_mixed_borrowers_never_share_a_connection",
        ),
    ),
    "F38": Entry(
        statement="A late session ticket costs an idle TLS connection at most; what is decrypted already is seen.",
        tests=(
            "test_security.py::test_cve_2026_48931_tls_tickets_on_a_connection_that_was_never_used_cost_at_most_another_one",
            "test_security.py::test_cve_2026_48931_tls_tickets_are_nobodys_answer_and_cost_no_connection",
            "test_transport.py::test_probe_of_tls_sees_what_is_decrypted_already",
        ),
    ),
    "F39": Entry(
        statement="Everything works with descriptors above 1023.",
        tests=(
            "test_pool_scenarios.py::test_everything_works_above_descriptor_1023",
            "test_transport.py::test_probe_works_above_descriptor_1023",
        ),
    ),
    "F40": Entry(
        statement="An idle age at which the server closes without announcing it is learned, and kept clear of.",
        tests=(
            "test_expiry.py::test_pool_learns_how_long_its_server_bears_idle_connections",
            "test_expiry.py::test_death_that_shows_on_use_teaches_as_much_as_one_that_the_probe_finds",
            "test_expiry.py::test_what_the_pool_has_learned_is_tried_anew_after_ten_minutes",
        ),
    ),
}

LIST: Final[Mapping[str, Entry]] = {**SCENARIOS, **FAULTS}


@functools.cache
def names_in(file: str) -> frozenset[str]:
    """Return the names of the tests in a file of ours; none if there is no such file."""
    path = Path(__file__).with_name(file)
    if not path.is_file():
        return frozenset()
    nodes = ast.walk(ast.parse(path.read_text()))
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef) if node.name.startswith("test_"))


def test_list_has_every_scenario_and_every_fault() -> None:
    assert list(SCENARIOS) == [f"S{number}" for number in range(1, 68)]
    assert list(FAULTS) == [f"F{number}" for number in range(1, 41)]


@pytest.mark.parametrize("number", LIST)
def test_entry_names_tests_that_exist_or_says_why_there_are_none(number: str) -> None:
    entry = LIST[number]
    assert entry.statement.endswith(".")
    assert entry.tests or len(entry.reason) > 20, "a reason takes more words"
    assert len(entry.tests) == len(set(entry.tests))
    for named in entry.tests:
        file, _, test = named.partition("::")
        assert names_in(file), f"{file} does not exist, or has no tests"
        assert test == "*" or test in names_in(file), f"{named} does not exist"


def test_every_statement_is_made_once() -> None:
    statements = [entry.statement for entry in LIST.values()]
    assert len(statements) == len(set(statements))


def test_every_scenario_that_is_played_is_in_the_list() -> None:
    named = {name for entry in LIST.values() for name in entry.tests}
    assert {f"test_pool_scenarios.py::{test}" for test in names_in("test_pool_scenarios.py")} <= named
