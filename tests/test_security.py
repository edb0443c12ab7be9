"""The known vulnerabilities of this field, each held against the public face, over real sockets.

`COVERED` is the list: what went wrong elsewhere, and which test says that it cannot go wrong here, or why it does not
touch us.  A test that proves an entry carries its ids in its name, so that ``pytest -k cve_2024_24791`` finds it; the
tests of other files that the list names prove the same room by room.  What we do not have (redirects, cookies, netrc,
decoding, proxies of the environment) is asserted to be missing: whoever adds it finds a failing test with the name of
what to look at.
"""

from __future__ import annotations

import ast
import contextlib
import datetime as dt
import functools
import gc
import inspect
import ipaddress
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Protocol, TypeVar, cast

import httptools
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

import pooledhttp
from pooledhttp import (
    ConnectionPool,
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    HTTPSConnection,
    IncompleteRead,
    InvalidChunk,
    InvalidResponse,
    InvalidURL,
    Limits,
    LineTooLong,
    PoolConfig,
    PoolManager,
    Retry,
    Timeout,
    TotalTimeout,
    TunnelError,
)
from pooledhttp.states import State
from pooledhttp.testing import (
    Close,
    ExpectBody,
    ExpectHead,
    KeepOpen,
    Mark,
    Peer,
    ReceivedRequest,
    Repeat,
    ResourceAudit,
    Respond,
    ScriptedServer,
    Send,
    ServerFactory,
    Signal,
    Stall,
    StartTLS,
    Trickle,
    keep_alive_script,
)

pytestmark = pytest.mark.unmeasured

# --- the list ---------------------------------------------------------------------------------------------------------

# The ids of one class of errors: the tests, here or in the file that is named, or a sentence why it does not touch us.
COVERED: Final[Mapping[str, tuple[str, ...] | str]] = {
    # Injection
    "CVE-2016-5699": (
        "test_cve_2016_5699_line_break_in_a_header_is_refused",
        "test_cve_2019_11236_whatever_is_passed_the_wire_holds_one_well_formed_head_or_nothing",
        "test_bad_input.py::test_malformed_request_on_a_fresh_connection_opens_nothing",
    ),
    "CVE-2019-9740 CVE-2019-9947": (
        "test_cve_2019_9740_control_or_space_in_the_target_is_refused",
        "test_bad_input.py::test_malformed_request_leaves_a_healthy_connection_as_it_is",
    ),
    "CVE-2019-18348": (
        "test_cve_2019_18348_control_in_the_host_is_refused",
        "test_bad_input.py::test_connection_with_a_malformed_argument_is_not_made",
    ),
    "CVE-2020-26116 CVE-2020-26137": (
        "test_cve_2020_26116_method_that_is_no_token_is_refused",
        "test_bad_input.py::test_malformed_putrequest_leaves_a_healthy_connection_as_it_is",
    ),
    "CVE-2019-11236 CVE-2020-11078 CVE-2023-49081": (
        "test_cve_2019_11236_whatever_is_passed_the_wire_holds_one_well_formed_head_or_nothing",
        "test_wire.py::test_whatever_is_passed_one_well_formed_head_is_written_or_none",
    ),
    "CVE-2023-49082": (
        "test_cve_2023_49082_version_of_a_subclass_that_breaks_the_line_is_refused",
        "test_cve_2020_26116_method_that_is_no_token_is_refused",
        "test_wire.py::test_other_versions_are_refused",
    ),
    "cpython-146211 urllib3-5091": (
        "test_cpython_146211_line_break_in_a_tunnel_is_refused",
        "test_tunnel.py::test_host_that_would_break_the_request_is_refused",
        "test_tunnel.py::test_header_that_would_break_the_request_is_refused",
    ),
    "CVE-2026-34514 GHSA-86v3": (
        "test_cve_2019_11236_whatever_is_passed_the_wire_holds_one_well_formed_head_or_nothing",
    ),
    "CVE-2014-8150": ("test_cve_2014_8150_line_break_in_a_whole_url_as_target_is_refused",),
    "CVE-2022-27780 urllib3-5095": (
        "test_cve_2022_27780_separator_in_the_host_is_refused",
        "test_wire.py::test_host_with_a_character_that_no_host_has_is_refused",
    ),
    "CVE-2022-35252 CVE-2022-32205": ("test_cve_2022_35252_cookie_of_a_response_is_never_sent_back",),
    # Wrong connection reuse
    "CVE-2016-5420 CVE-2016-7141 CVE-2016-5419": (
        "test_cve_2016_5420_client_certificates_never_share_a_connection",
        "test_cve_2022_27782_pools_that_differ_in_one_setting_never_share_a_connection",
    ),
    "CVE-2021-22924 CVE-2020-8231": ("test_cve_2021_22924_context_lives_as_long_as_its_pool",),
    "CVE-2022-27782 CVE-2026-8932": ("test_cve_2022_27782_pools_that_differ_in_one_setting_never_share_a_connection",),
    "CVE-2023-27535 CVE-2023-27536 CVE-2023-27538": (
        "test_cve_2023_27536_no_call_can_ask_for_another_kind_of_connection",
        "test_cve_2022_27782_pools_that_differ_in_one_setting_never_share_a_connection",
    ),
    "CVE-2024-35195": (
        "test_cve_2024_35195_connection_without_verification_is_not_used_where_it_is_asked_for",
        "test_cve_2024_35195_context_that_is_tightened_holds_for_every_connection_opened_afterwards",
    ),
    "CVE-2022-27775": (
        "test_cve_2022_27775_zones_of_an_address_have_connections_of_their_own",
        "test_manager.py::test_zone_of_an_ipv6_address_belongs_to_the_origin",
    ),
    "CVE-2026-3784": (
        "test_cve_2026_3784_credentials_for_a_proxy_have_tunnels_of_their_own",
        "test_cve_2026_3784_proxy_headers_that_the_caller_changes_afterwards_change_nothing",
        "test_cve_2026_3784_open_tunnel_takes_no_other_credentials",
    ),
    "CVE-2016-0755 CVE-2014-0015 CVE-2015-3143 CVE-2015-3148 CVE-2026-5545 CVE-2026-8458": (
        "test_cve_2016_0755_connection_that_belongs_to_a_user_is_lent_to_nobody_else",
        "test_cve_2016_0755_other_credentials_leave_the_connection_to_everybody",
    ),
    "CVE-2026-1965": ("test_cve_2026_1965_connection_of_a_whole_request_that_belongs_to_a_user_is_not_kept",),
    "CVE-2026-4873 CVE-2026-8286": ("test_cve_2026_4873_plain_connection_is_never_used_where_tls_is_asked_for",),
    "CVE-2022-22576 CVE-2015-3236": (
        "test_cve_2022_22576_credentials_of_one_request_are_not_in_the_next",
        "test_isolation.py::test_what_a_borrower_does_to_a_connection_does_not_reach_the_next_one",
    ),
    "CVE-2026-6276": ("test_cve_2026_6276_request_that_failed_halfway_leaves_nothing_for_the_next",),
    "CVE-2026-9079": ("test_cve_2026_9079_tunnel_that_is_asked_for_anew_has_none_of_the_fields_before",),
    "aiohttp-server-hostname": (
        "test_aiohttp_server_hostname_pools_for_different_names_never_share_a_connection",
        "test_cve_2022_27782_pools_that_differ_in_one_setting_never_share_a_connection",
    ),
    "CVE-2021-22890 CVE-2024-0853 CVE-2017-7468": (
        "test_cve_2021_22890_tls_sessions_are_never_resumed",
        "test_cve_2021_22901_handshake_that_failed_leaves_nothing_that_lets_the_next_one_pass",
    ),
    "CVE-2021-22901": ("test_cve_2021_22901_handshake_that_failed_leaves_nothing_that_lets_the_next_one_pass",),
    # Credentials
    "CVE-2003-1605 CVE-2014-1830 CVE-2023-32681 CVE-2024-37891": (
        "test_cve_2014_1830_credentials_for_the_proxy_never_reach_the_origin",
        "test_tunnel.py::test_proxy_is_told_the_tunnel_fields_and_nothing_else",
    ),
    "CVE-2015-3153": ("test_cve_2015_3153_headers_for_the_origin_never_reach_the_proxy",),
    "CVE-2018-20060 CVE-2018-25091 CVE-2023-43804 CVE-2026-44431 CVE-2018-18074 GHSA-966j CVE-2018-1000007 "
    "CVE-2022-27774 CVE-2022-27776 CVE-2025-14524 CVE-2023-45803 CVE-2025-50181": (
        "test_cve_2018_20060_redirect_is_returned_and_not_followed",
    ),
    "CVE-2014-1829 CVE-2024-47081 CVE-2024-11053 CVE-2025-0167 CVE-2026-3783 CVE-2026-6429 CVE-2026-8926": (
        "test_cve_2014_1829_nothing_is_read_from_the_home_directory",
        "test_cve_2018_20060_redirect_is_returned_and_not_followed",
    ),
    "CVE-2026-6253 CVE-2026-8927": ("test_cve_2026_6253_proxies_of_the_environment_are_not_used",),
    "CVE-2026-7168": ("test_cve_2026_7168_there_is_no_way_yet_to_ask_for_the_proxies_of_the_environment",),
    "secrets-in-logs": (
        "test_secrets_in_logs_stay_out_of_every_repr",
        "test_secrets_in_logs_stay_out_of_every_error",
        "test_secrets_in_logs_stay_out_of_every_label_of_the_metrics",
        "test_secrets_in_logs_stay_out_of_the_debug_output",
        "test_secrets_in_logs_are_neither_printed_nor_logged_unasked",
    ),
    # Unbounded resources
    "CVE-2013-1752": (
        "test_cve_2013_1752_line_over_the_limit_is_an_error",
        "test_wire.py::test_line_over_the_limit_is_too_long",
    ),
    "CVE-2023-38039": (
        "test_cve_2023_38039_endless_headers_end_within_the_limits",
        "test_wire.py::test_head_over_the_limit_is_an_error",
    ),
    "CVE-2021-3737 ruby-net-http-319": (
        "test_cve_2021_3737_endless_interim_answers_end_within_the_limits",
        "test_response.py::test_endless_framing_ends_within_the_limits",
    ),
    "go-65035": ("test_go_65035_total_ends_what_trickles_within_every_other_limit",),
    "cpython-150743 CVE-2026-22815": (
        "test_cve_2026_22815_endless_trailers_end_within_the_limits",
        "test_cve_2021_3737_endless_interim_answers_end_within_the_limits",
    ),
    "CVE-2025-13836 cpython-119451": (
        "test_cve_2025_13836_promise_of_a_huge_body_costs_no_memory",
        "test_cve_2025_13836_promise_of_a_huge_body_costs_no_memory_however_it_is_read",
        "test_response.py::test_promise_of_a_huge_body_is_no_allocation",
    ),
    "CVE-2023-39326": ("test_cve_2023_39326_endless_chunk_extensions_end_within_the_limits",),
    "CVE-2025-66471 CVE-2026-44432 CVE-2026-22036 CVE-2023-23916 CVE-2025-0725": (
        "test_cve_2025_66471_packed_body_stays_packed",
    ),
    "CVE-2026-21441 GHSA-5x59": ("test_cve_2026_21441_draining_neither_unpacks_nor_reads_without_end",),
    "CVE-2025-66418": (
        "test_cve_2025_66418_there_is_nothing_that_could_unpack",
        "test_cve_2025_66471_packed_body_stays_packed",
    ),
    "CVE-2026-34513": (
        "test_cve_2026_34513_hundred_thousand_hosts_leave_no_more_than_the_bounds",
        "test_cve_2026_34513_thousand_hosts_leave_no_more_than_a_hundred_labels",
        "test_dial.py::test_resolver_error_passes_untouched_and_the_next_call_resolves_again",
    ),
    "CVE-2021-33503 CVE-2020-7212 CVE-2021-21240": (
        "test_cve_2021_33503_time_for_a_response_is_linear_in_each_field",
        "test_wire.py::test_time_is_linear_in_the_input",
    ),
    "CVE-2020-8492 CVE-2021-3733": ("test_cve_2020_8492_time_to_refuse_a_call_is_linear_in_each_string",),
    # Framing
    "CVE-2026-48931": (
        "test_cve_2026_48931_unsolicited_response_in_the_same_segment_reaches_nobody",
        "test_cve_2026_48931_unsolicited_response_on_an_idle_connection_reaches_nobody",
        "test_cve_2026_48931_end_right_behind_the_body_is_no_premature_close",
        "test_cve_2026_48931_tls_tickets_are_nobodys_answer_and_cost_no_connection",
        "test_cve_2026_48931_tls_tickets_on_a_connection_that_was_never_used_cost_at_most_another_one",
        "test_pool_faults.py::test_end_of_an_idle_connection_is_seen_at_checkout_and_never_read_as_an_answer",
    ),
    "GHSA-35p6-xmwp-9g52": (
        "test_ghsa_35p6_xmwp_9g52_unsolicited_response_within_a_lease_reaches_neither_its_borrower_nor_the_next",
        "test_isolation.py::test_bytes_between_two_requests_of_one_lease_are_nobodys_answer",
    ),
    "CVE-2024-24791": (
        "test_cve_2024_24791_connection_whose_body_was_never_sent_is_not_used_again",
        "test_cve_2024_24791_connection_whose_body_was_asked_for_and_sent_is_used_again",
    ),
    "CVE-2025-43859 CVE-2025-22871 CVE-2025-55315 CVE-2025-58056 PYSEC-2026-1109": (
        "test_cve_2025_43859_broken_chunk_is_an_error_and_ends_the_connection",
        "test_response.py::test_malformed_chunk_framing_is_an_error_and_closes_the_connection",
    ),
    "CVE-2023-47627": (
        "test_cve_2023_47627_what_is_no_length_is_not_believed",
        "test_cve_2025_43859_broken_chunk_is_an_error_and_ends_the_connection",
    ),
    "CVE-2024-23829": (
        "test_cve_2024_23829_equal_lengths_are_one",
        "test_cve_2025_43859_broken_chunk_is_an_error_and_ends_the_connection",
        "test_wire.py::test_space_before_the_colon_of_a_length_is_an_error",
    ),
    "CVE-2023-47641": (
        "test_cve_2023_47641_different_lengths_are_an_error",
        "test_cve_2023_47641_chunks_win_over_a_length_and_the_connection_ends",
    ),
    "CVE-2022-32213 CVE-2022-32214 CVE-2022-32215": (
        "test_cve_2022_32213_coding_that_does_not_end_in_chunked_is_read_to_the_end",
    ),
    "response-splitting": (
        "test_response_splitting_nul_or_bare_cr_in_a_header_is_an_error",
        "test_response_splitting_continued_line_is_joined_by_one_space",
    ),
    "cpython-157951": (
        "test_cpython_157951_answer_that_has_no_body_is_not_waited_for",
        "test_cpython_157951_interim_answer_has_no_body_whatever_its_fields_say",
    ),
    "CVE-2021-22947": (
        "test_cve_2021_22947_plain_bytes_behind_the_answer_to_connect_end_the_connection_before_tls",
        "test_cve_2021_22947_plain_bytes_that_come_later_are_never_taken_for_what_was_encrypted",
        "test_tunnel.py::test_misbehaviour_of_the_proxy_is_an_error_and_closes_the_connection",
    ),
    # TLS
    "CVE-2014-9365": (
        "test_cve_2014_9365_certificate_for_another_name_is_refused",
        "test_cve_2014_9365_certificate_for_this_name_is_accepted",
        "test_tls.py::test_default_context_trusts_no_unknown_authority",
    ),
    "CVE-2013-2037 CVE-2016-9015 CVE-2023-28321": ("test_cve_2014_9365_certificate_for_another_name_is_refused",),
    "CVE-2019-11324": (
        "test_cve_2019_11324_certificate_that_does_not_hold_is_refused",
        "test_tls.py::test_certificate_that_does_not_hold_is_refused",
    ),
    "CVE-2021-28363": ("test_cve_2021_28363_tls_to_the_proxy_itself_is_refused_not_left_unverified",),
    "urllib3-5029": ("test_urllib3_5029_odd_spelling_of_an_address_is_no_name_that_a_certificate_covers",),
    "CVE-2025-14017": ("test_cve_2025_14017_nothing_that_the_whole_process_shares_is_changed",),
    "truncation": (
        "test_truncation_of_tls_is_an_error",
        "test_truncation_of_tls_is_none_when_the_peer_said_goodbye",
        "test_response.py::test_tls_that_ends_without_close_notify_is_a_truncation",
    ),
    # Deadlocks
    "redis-py-1578 redis-py-3081 redis-py-3289 psycopg-1120 ddtrace-6308": (
        "test_redis_py_1578_collecting_a_lost_lease_under_the_lock_of_its_pool_is_no_deadlock",
    ),
    "urllib3-5059": (
        "test_urllib3_5059_malformed_timeout_costs_no_slot",
        "test_bad_input.py::test_malformed_lease_leaves_a_pooled_connection_as_it_is",
    ),
    "urllib3-redirect-in-a-full-pool": "nothing is retried or redirected while it holds a connection: a stale one is "
    "given up before another is asked for, and redirects are not followed",
}


def in_a_name(listed_id: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", listed_id.lower())


_Test = TypeVar("_Test", bound=Callable[..., object])


@pytest.fixture(name="_listed")
def listed_ids(request: pytest.FixtureRequest) -> None:
    """Take the ids that `listed` puts into the names of the tests."""


def listed(test: _Test) -> _Test:
    """Put the ids that the list gives to this test into its name, for ``pytest -k``."""
    rows = [row for row, tests in COVERED.items() if not isinstance(tests, str) and test.__name__ in tests]
    ids = ",".join(in_a_name(listed_id) for row in rows for listed_id in row.split())
    assert ids, f"{test.__name__} is not in the list"
    marked = pytest.mark.usefixtures("_listed")(
        pytest.mark.parametrize("_listed", [ids], ids=[ids], indirect=True)(test)
    )
    return cast("_Test", marked)


@functools.cache
def names_in(file: str) -> set[str]:
    """Return the names of the tests in a file of ours."""
    tree = ast.parse(Path(__file__).with_name(file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) if node.name.startswith("test_")}


@pytest.mark.parametrize("ids", COVERED)
def test_every_entry_of_the_list_names_tests_that_exist(ids: str) -> None:
    tests = COVERED[ids]
    if isinstance(tests, str):
        assert len(tests) > 20, "a reason takes more words"
        return
    own = [name for name in tests if "::" not in name]
    assert own, "the list stands on its own"
    for name in tests:
        file, _, test = name.rpartition("::")
        assert test in names_in(file or Path(__file__).name), f"{name} does not exist"


def test_every_id_stands_in_the_list_once() -> None:
    ids = [in_a_name(listed_id) for row in COVERED for listed_id in row.split()]
    assert len(ids) == len(set(ids))


def test_every_test_named_by_an_id_is_in_the_list() -> None:
    named = {name for tests in COVERED.values() if not isinstance(tests, str) for name in tests}
    ids = [in_a_name(listed_id) for row in COVERED for listed_id in row.split()]
    by_id = {name for name in names_in(Path(__file__).name) if name.removeprefix("test_").startswith(tuple(ids))}
    assert by_id <= named


# --- the ways in, and what they leave behind --------------------------------------------------------------------------

BOUND = 10.0
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
# Every answer repeats the target of its request: one that belongs to somebody else shows.
SERVE = cast(
    "Callable[[Peer], None]", keep_alive_script(lambda request: Respond(body=request.target.encode()).encode())
)


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    fields: list[tuple[str, str]]


class Ask(Protocol):
    """Send one request and read its whole answer."""

    def __call__(
        self, target: str = "/first", *, method: str = "GET", body: Any = None, headers: Any = None
    ) -> Answer: ...


class To(Protocol):
    """Make the way to a server; it keeps one connection at most."""

    def __call__(self, server: ScriptedServer, **options: Any) -> Ask: ...


def is_tls(server: ScriptedServer) -> bool:
    return server.url.startswith("https")


def new_connection(server: ScriptedServer) -> HTTPConnection:
    if is_tls(server):
        return HTTPSConnection(server.host, server.port, timeout=BOUND, context=client_context())
    return HTTPConnection(server.host, server.port, timeout=BOUND)


def new_pool(server: ScriptedServer, **options: Any) -> ConnectionPool:
    scheme = "https" if is_tls(server) else "http"
    context = client_context() if is_tls(server) else None
    options = {"maxsize": 1, "ssl_context": context, "timeout": Timeout(read=BOUND), "registry": None, **options}
    return ConnectionPool(server.host, server.port, scheme=scheme, **options)


def answer_of(response: HTTPResponse) -> Answer:
    return Answer(response.status, response.read(), response.getheaders())


def by_connection(stack: contextlib.ExitStack, server: ScriptedServer, audit: ResourceAudit, **_: Any) -> Ask:
    conn = new_connection(server)
    stack.callback(conn.close)

    def ask(target: str = "/first", *, method: str = "GET", body: Any = None, headers: Any = None) -> Answer:
        conn.request(method, target, body, headers or {})
        return answer_of(conn.getresponse())

    return ask


def by_steps(stack: contextlib.ExitStack, server: ScriptedServer, audit: ResourceAudit, **_: Any) -> Ask:
    conn = new_connection(server)
    stack.callback(conn.close)

    def ask(target: str = "/first", *, method: str = "GET", body: Any = None, headers: Any = None) -> Answer:
        try:
            conn.putrequest(method, target)
            for name, value in (headers or {}).items():
                conn.putheader(name, value)
            if body is not None:
                conn.putheader("Content-Length", len(body))
            conn.endheaders(body)
        except (ValueError, TypeError):
            conn.close()  # else the request that was begun could still be finished
            raise
        return answer_of(conn.getresponse())

    return ask


def by_pool(stack: contextlib.ExitStack, server: ScriptedServer, audit: ResourceAudit, **options: Any) -> Ask:
    pool = stack.enter_context(new_pool(server, **options))
    audit.watch(pool)

    def ask(target: str = "/first", *, method: str = "GET", body: Any = None, headers: Any = None) -> Answer:
        response = pool.request(method, target, body, headers or {})
        return Answer(response.status, response.data, list(response.headers.items()))

    return ask


def by_stream(stack: contextlib.ExitStack, server: ScriptedServer, audit: ResourceAudit, **options: Any) -> Ask:
    pool = stack.enter_context(new_pool(server, **options))
    audit.watch(pool)

    def ask(target: str = "/first", *, method: str = "GET", body: Any = None, headers: Any = None) -> Answer:
        with pool.stream(method, target, body, headers or {}) as response:
            return answer_of(response)

    return ask


def by_manager(stack: contextlib.ExitStack, server: ScriptedServer, audit: ResourceAudit, **options: Any) -> Ask:
    context = client_context() if is_tls(server) else None
    options = {"maxsize": 1, "ssl_context": context, "timeout": Timeout(read=BOUND), "registry": None, **options}
    manager = stack.enter_context(PoolManager(**options))

    def ask(target: str = "/first", *, method: str = "GET", body: Any = None, headers: Any = None) -> Answer:
        response = manager.request(method, server.url + target, body, headers or {})
        return Answer(response.status, response.data, list(response.headers.items()))

    return ask


WAYS: Final[dict[str, Callable[..., Ask]]] = {
    "connection": by_connection,
    "pool": by_pool,
    "steps": by_steps,
    "stream": by_stream,
    "manager": by_manager,
}


def _ways(way: str, audit: ResourceAudit) -> Iterator[To]:
    with contextlib.ExitStack() as stack:

        def to(server: ScriptedServer, **options: Any) -> Ask:
            return WAYS[way](stack, server, audit, **options)

        yield to


# The server's fixture comes first, so that the ways are closed before it.
@pytest.fixture(params=["connection", "pool"])
def to(request: pytest.FixtureRequest, scripted_server: ServerFactory, audit: ResourceAudit) -> Iterator[To]:
    """The two that read responses by different code."""
    yield from _ways(request.param, audit)


@pytest.fixture(params=WAYS)
def to_all(request: pytest.FixtureRequest, scripted_server: ServerFactory, audit: ResourceAudit) -> Iterator[To]:
    yield from _ways(request.param, audit)


@pytest.fixture
def server(scripted_server: ServerFactory) -> ScriptedServer:
    return scripted_server(default=SERVE)


def finish(ask: Ask, server: ScriptedServer, *, connections: int) -> None:
    """One normal request, which gets its own answer; then so many connections have been opened."""
    assert ask("/again").body == b"/again"
    assert server.accepted == connections


def assert_refused(
    to: To, scripted_server: ServerFactory, wire: bytes, error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    """What the server sends is an error, though nothing ends or times out, and its connection is never used again."""
    server = scripted_server([ExpectHead(), Send(wire), KeepOpen()], default=SERVE)
    ask = to(server)
    with pytest.raises(error) as caught:
        ask()
    assert not isinstance(caught.value, TimeoutError)
    finish(ask, server, connections=2)


def assert_read_to_the_end(to: To, scripted_server: ServerFactory, wire: bytes, body: bytes) -> None:
    """The body ends with its connection, however little of it some other parser would take."""
    server = scripted_server([ExpectHead(), Send(wire), Close()], default=SERVE)
    ask = to(server)
    assert ask().body == body
    finish(ask, server, connections=2)


def assert_never_reused(to: To, scripted_server: ServerFactory, wire: bytes, body: bytes) -> None:
    """The answer is delivered, but its connection, which the server keeps open, is never used again."""
    server = scripted_server([ExpectHead(), Send(wire), KeepOpen()], default=SERVE)
    ask = to(server)
    assert ask().body == body
    finish(ask, server, connections=2)


def assert_reused(to: To, scripted_server: ServerFactory, wire: bytes, body: bytes, *, method: str = "GET") -> Answer:
    """The answer is delivered, and the next one comes over the same connection."""
    server = scripted_server([ExpectHead(), Send(wire), SERVE])
    ask = to(server)
    answer = ask(method=method)
    assert answer.body == body
    finish(ask, server, connections=1)
    return answer


# --- certificates -----------------------------------------------------------------------------------------------------


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(*names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*(names or ("127.0.0.1",))).configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


def trusting_context() -> ssl.SSLContext:
    """Return what ``verify=False`` means elsewhere."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def odd_certificate(
    folder: Path, *names: x509.GeneralName, common_name: str = "nobody", is_self_signed: bool = False, days: int = 1
) -> ssl.SSLContext:
    """Return the server's side of TLS with a certificate that no honest authority would sign."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=30))
        .not_valid_after(now + dt.timedelta(days=days))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if is_self_signed:
        certificate = builder.issuer_name(subject).sign(key, hashes.SHA256())
    else:
        issuer = x509.load_pem_x509_certificate(authority().cert_pem.bytes())
        signer = serialization.load_pem_private_key(authority().private_key_pem.bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        named = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())  # strict clients ask for it
        builder = builder.issuer_name(issuer.subject).add_extension(named, critical=False)
        certificate = builder.sign(signer, hashes.SHA256())
    pem = folder / "server.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


# --- the package's own source -----------------------------------------------------------------------------------------

PACKAGE: Final = Path(pooledhttp.__file__).parent


@functools.cache
def core_trees() -> dict[str, ast.Module]:
    """The package's rooms, without what is shipped for tests and for show."""
    return {path.name: ast.parse(path.read_text()) for path in sorted(PACKAGE.glob("*.py"))}


def imported_names(tree: ast.Module) -> set[str]:
    """Return every module that a file imports anywhere, its parents included."""
    modules: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return {".".join(name.split(".")[: at + 1]) for name in modules for at in range(name.count(".") + 1)}


# --- injection --------------------------------------------------------------------------------------------------------

CONTROLS: Final = [chr(code) for code in [*range(0x20), 0x7F]]
NEWLINES: Final = ["\r\n", "\n", "\r", "\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"]


def assert_nothing_sent(
    to: To, server: ScriptedServer, error: type[Exception], /, *, target: str = "/bad", **arguments: Any
) -> None:
    """The call is refused before a connection is opened, and does not spoil the next one."""
    ask = to(server)
    with pytest.raises(error):
        ask(target, **arguments)
    assert server.accepted == 0
    finish(ask, server, connections=1)
    assert server.connections[0].received == server.heads[0]


@listed
@pytest.mark.parametrize("newline", [*NEWLINES, "\0"])
@pytest.mark.parametrize("where", ["name", "value"])
def test_cve_2016_5699_line_break_in_a_header_is_refused(
    where: str, newline: str, to_all: To, server: ScriptedServer
) -> None:
    headers = {f"X-A{newline}X-Smuggled": "1"} if where == "name" else {"X-A": f"1{newline}X-Smuggled: 1"}
    assert_nothing_sent(to_all, server, ValueError, headers=headers)


@listed
@pytest.mark.parametrize("bad", [*CONTROLS, " ", *NEWLINES])
@pytest.mark.parametrize("where", ["/path{}end", "/?query={}end"], ids=["cve_2019_9947 path", "cve_2019_9740 query"])
def test_cve_2019_9740_control_or_space_in_the_target_is_refused(
    where: str, bad: str, to: To, server: ScriptedServer
) -> None:
    assert_nothing_sent(to, server, InvalidURL, target=where.format(bad))


@listed
@pytest.mark.parametrize("bad", [*CONTROLS, " ", *NEWLINES])
@pytest.mark.parametrize("kind", [HTTPConnection, HTTPSConnection, ConnectionPool])
def test_cve_2019_18348_control_in_the_host_is_refused(
    kind: type[HTTPConnection | ConnectionPool], bad: str, audit: ResourceAudit
) -> None:
    with pytest.raises(InvalidURL):
        kind(f"127.0.0.1{bad}.evil.test")
    with pytest.raises(InvalidURL):
        kind(f"127.0.0.1{bad}:80")
    with PoolManager(registry=None) as manager, pytest.raises(InvalidURL):
        manager.request("GET", f"http://127.0.0.1{bad}:80/")


@listed
@pytest.mark.parametrize("bad", [*CONTROLS, " ", "/", ":", *NEWLINES])
def test_cve_2020_26116_method_that_is_no_token_is_refused(bad: str, to: To, server: ScriptedServer) -> None:
    assert_nothing_sent(to, server, ValueError, method=f"GET{bad}X")


@listed
@pytest.mark.parametrize("version", ["HTTP/1.1\r\nX-Smuggled: 1", "HTTP/1.1 ", "HTTP/2", ""])
def test_cve_2023_49082_version_of_a_subclass_that_breaks_the_line_is_refused(
    version: str, server: ScriptedServer
) -> None:
    class Odd(HTTPConnection):
        _http_vsn_str = version

    conn = Odd(server.host, server.port, timeout=BOUND)
    with pytest.raises(ValueError, match="protocol version"):
        conn.request("GET", "/bad")
    conn.close()
    assert server.requests == []
    plain = HTTPConnection(server.host, server.port, timeout=BOUND)
    plain.request("GET", "/again")
    assert plain.getresponse().read() == b"/again"
    plain.close()


@listed
@pytest.mark.parametrize("bad", [*NEWLINES, "\0"])
@pytest.mark.parametrize("where", ["host", "name", "value"])
def test_cpython_146211_line_break_in_a_tunnel_is_refused(where: str, bad: str, server: ScriptedServer) -> None:
    host = f"origin.test{bad}" if where == "host" else "origin.test"
    headers = {f"X-A{bad}B" if where == "name" else "X-A": f"1{bad}X-Smuggled: 1" if where == "value" else "1"}
    conn = HTTPConnection(server.host, server.port, timeout=BOUND)
    with pytest.raises(ValueError, match="Invalid"):
        conn.set_tunnel(host, 443, headers)
    assert server.accepted == 0
    conn.request("GET", "/again")
    assert conn.getresponse().read() == b"/again"
    conn.close()
    if where != "host":
        with pytest.raises(ValueError, match="Invalid header"):
            ConnectionPool("origin.test", proxy=f"http://{server.host}:{server.port}", proxy_headers=headers)


@listed
@pytest.mark.parametrize("newline", NEWLINES)
@pytest.mark.parametrize("target", ["http://origin.test/{}", "http://origin.test{}/", "http://{}origin.test/"])
def test_cve_2014_8150_line_break_in_a_whole_url_as_target_is_refused(
    target: str, newline: str, server: ScriptedServer
) -> None:
    conn = HTTPConnection(server.host, server.port, timeout=BOUND)
    with pytest.raises(InvalidURL):
        conn.request("GET", target.format(newline))
    with pytest.raises(InvalidURL):
        conn.putrequest("GET", target.format(newline))
    conn.request("GET", "http://origin.test/again")
    assert conn.getresponse().read() == b"http://origin.test/again"
    conn.close()
    with PoolManager(registry=None) as manager, pytest.raises(InvalidURL):
        manager.request("GET", f"{server.url}/{newline}")
    assert [request.target for request in server.requests] == ["http://origin.test/again"]


@listed
@pytest.mark.parametrize(
    "host", ["127.0.0.1%2F.evil.test", "127.0.0.1%00", "127.0.0.1%40evil", "127.0.0.1/evil", "user@127.0.0.1",
             "127.0.0.1 evil", "127.0.0.1\0", "127.0.0.1\\evil", "127.0.0.1#", "127.0.0.1?", "b\xfccher\uff0fevil.test",
             "evil\u2100.test", "\uff11\uff12\uff17.0.0.1"],
)  # fmt: skip
def test_cve_2022_27780_separator_in_the_host_is_refused(host: str, server: ScriptedServer) -> None:
    with pytest.raises(InvalidURL):
        HTTPConnection(host, server.port)
    with pytest.raises(InvalidURL):
        ConnectionPool(host, server.port)
    with pytest.raises(ValueError, match="Invalid tunnel host"):
        HTTPConnection(server.host, server.port).set_tunnel(host, 80)
    assert server.accepted == 0
    with PoolManager(registry=None) as manager:
        if not set(host) & set("/?#"):  # there the host of a URL is over
            with pytest.raises(InvalidURL):
                manager.request("GET", f"http://{host}:{server.port}/")
            assert server.accepted == 0
        assert manager.request("GET", f"{server.url}/again").data == b"/again"


@listed
def test_cve_2022_35252_cookie_of_a_response_is_never_sent_back(
    to_all: To, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    # As many as one head holds, one of them with a control byte: nothing of it is kept, so nothing comes back.
    cookies = [("Set-Cookie", f"c{number}=v") for number in range(90)] + [("Set-Cookie", "odd=\x01")]
    server = scripted_server([ExpectHead(), Respond(headers=cookies)], default=SERVE)
    ask = to_all(server)
    assert len([name for name, _ in ask().fields if name == "Set-Cookie"]) == 91
    assert ask("/again").body == b"/again"
    assert all(request.field("Cookie") is None for request in server.requests)
    for name, tree in core_trees().items():
        assert not imported_names(tree) & {"http.cookies", "http.cookiejar"}, name


# --- whatever is passed, one well-formed head or nothing --------------------------------------------------------------

PIECES: Final = [
    "a", "b", "-", "1", "/", "/ok", "GET", "Host", "127.0.0.1", ";", ",", "%0d%0a", "%2F", "#", "?", "[", "]", "\\",
    "\r\n", "\n", "\r", "\0", " ", "\t", ":", "@", "%", "\x1f", "\x7f", "\x85", "\xa0", "\xff",
    "HTTP/1.1", " HTTP/1.1\r\n", "\u010a", "\u010d", "\u0120", "\u2028", "\uff0f", "\u2100", "\uff11",
    "\r\nX-Smuggled: 1", "\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
]  # fmt: skip
GOOD: Final = {
    "method": "GET",
    "target": "/ok",
    "name": "X-Good",
    "value": "good",
    "host": "origin.test",
    "tunnel_host": "behind.test",
    "tunnel_name": "X-Tunnel",
    "tunnel_value": "good",
}
hostile_texts = st.lists(st.sampled_from(PIECES), max_size=3).map("".join)
hostile_calls = st.dictionaries(st.sampled_from(sorted(GOOD)), hostile_texts, min_size=1, max_size=2)


class Call(SimpleNamespace):
    """The strings of one call."""

    method: str
    target: str
    name: str
    value: str
    host: str
    tunnel_host: str
    tunnel_name: str
    tunnel_value: str


def send_request(call: Call, conn: HTTPConnection) -> None:
    with contextlib.closing(conn):
        conn.request(call.method, call.target, headers={call.name: call.value})
        conn.getresponse().read()


def request_of_bytes(call: Call, port: int) -> None:
    with contextlib.closing(HTTPConnection(call.host, port, timeout=BOUND)) as conn:
        conn.request(call.method, call.target, headers={call.name.encode(): call.value.encode()})
        conn.getresponse().read()


def request_by_steps(call: Call, port: int) -> None:
    with contextlib.closing(HTTPConnection(call.host, port, timeout=BOUND)) as conn:
        conn.putrequest(call.method, call.target)
        conn.putheader(call.name, call.value, call.value)
        conn.endheaders()
        conn.getresponse().read()


def request_with_host(call: Call, port: int) -> None:
    with contextlib.closing(HTTPConnection(call.host, port, timeout=BOUND)) as conn:
        conn.request(call.method, call.target, headers={"Host": call.value, "User-Agent": call.name})
        conn.getresponse().read()


def request_through_tunnel(call: Call, port: int) -> None:
    conn = HTTPConnection(call.host, port, timeout=BOUND)
    conn.set_tunnel(call.tunnel_host, 80, {call.tunnel_name: call.tunnel_value})
    send_request(call, conn)


def pool_request(call: Call, port: int) -> None:
    with ConnectionPool(call.host, port, registry=None) as pool:
        pool.request(call.method, call.target, headers={call.name: call.value})


def pool_stream(call: Call, port: int) -> None:
    with (
        ConnectionPool(call.host, port, registry=None) as pool,
        pool.stream(call.method, call.target, headers={call.name: call.value}) as response,
    ):
        response.read()


def pool_through_proxy(call: Call, port: int) -> None:
    with ConnectionPool(call.tunnel_host, 80, registry=None, proxy=f"http://{call.host}:{port}",
                        proxy_headers={call.tunnel_name: call.tunnel_value}) as pool:  # fmt: skip
        pool.request(call.method, call.target, headers={call.name: call.value})


def lent_connection(call: Call, port: int) -> None:
    with ConnectionPool(call.host, port, registry=None) as pool, pool.connection() as conn:
        conn.request(call.method, call.target, headers={call.name: call.value})
        conn.getresponse().read()


def manager_request(call: Call, port: int) -> None:
    with PoolManager(registry=None) as manager:
        manager.request(call.method, f"http://{call.host}:{port}{call.target}", headers={call.name: call.value})


def manager_stream(call: Call, port: int) -> None:
    with (
        PoolManager(registry=None) as manager,
        manager.stream(call.method, f"http://{call.host}:{port}{call.target}",
                       headers={call.name: call.value}) as response,
    ):  # fmt: skip
        response.read()


# With how many requests reach the peer, the one for the tunnel included.
PUBLIC_ENTRIES: Final[dict[str, tuple[Callable[[Call, int], None], int]]] = {
    "request": (lambda call, port: send_request(call, HTTPConnection(call.host, port, timeout=BOUND)), 1),
    "request with bytes": (request_of_bytes, 1),
    "request with Host": (request_with_host, 1),
    "putrequest, putheader, endheaders": (request_by_steps, 1),
    "set_tunnel": (request_through_tunnel, 2),
    "pool.request": (pool_request, 1),
    "pool.stream": (pool_stream, 1),
    "pool with a proxy": (pool_through_proxy, 2),
    "pool.connection": (lent_connection, 1),
    "manager.request": (manager_request, 1),
    "manager.stream": (manager_stream, 1),
}


class HeadJudge:
    """Parses with llhttp, which shares nothing with the package, and collects what one message holds."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.completed = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.names.append(name.decode("latin-1").lower())

    def on_message_complete(self) -> None:
        self.completed += 1


def judge_heads(received: bytes, *, count: int, call: Call) -> None:
    """Fail unless these bytes are exactly so many requests, of one well-formed head each and nothing else."""
    heads = received.split(b"\r\n\r\n")
    assert heads.pop() == b"", "bytes stand behind the last head"
    assert len(heads) == count
    for at, head in enumerate(heads):
        request_line, _, fields = head.partition(b"\r\n")
        assert re.fullmatch(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ [!-~]+ HTTP/1\.1", request_line), request_line
        is_connect = at < count - 1
        method = b"CONNECT" if is_connect else call.method.encode()
        assert request_line.startswith(method + b" ")
        judge = HeadJudge()
        # llhttp knows the usual methods and targets only; ours have been looked at above.
        httptools.HttpRequestParser(judge).feed_data(b"GET / HTTP/1.1\r\n" + fields + b"\r\n\r\n")
        assert judge.completed == 1
        own = (
            {"host", "proxy-connection"} if is_connect else {"host", "accept-encoding", "content-length", "user-agent"}
        )
        given = call.tunnel_name if is_connect else call.name
        assert set(judge.names) <= own | {given.lower()}
        assert judge.names.count("host") == 1


def speaking(peers: Sequence[Peer]) -> list[Peer]:
    """Return those that have received anything; one that was lent before its request was refused has not."""
    return [peer for peer in peers if peer.received_count]


@listed
@pytest.mark.parametrize("entry", PUBLIC_ENTRIES)
def test_cve_2019_11236_whatever_is_passed_the_wire_holds_one_well_formed_head_or_nothing(
    entry: str, scripted_server: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted_server(default=keep_alive_script(lambda request: Respond().encode(request.method)))
    found = [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", server.address)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    send, count = PUBLIC_ENTRIES[entry]
    outcomes = {"sent": 0, "refused": 0}

    @settings(max_examples=200, deadline=None, database=None, derandomize=True)
    @given(hostile_calls)
    @example({})
    def try_it(hostile: dict[str, str]) -> None:
        call = Call(**{**GOOD, **hostile})
        before = server.accepted
        try:
            send(call, server.port)
        except (ValueError, InvalidURL):
            outcomes["refused"] += 1
            return
        outcomes["sent"] += 1
        (peer,) = speaking(server.connections[before:])
        assert peer.ended.wait(BOUND)
        judge_heads(peer.received, count=count, call=call)

    try_it()
    assert outcomes["sent"] > 10
    assert outcomes["refused"] > 10
    with ConnectionPool(server.host, server.port, registry=None) as pool:
        assert pool.request("GET", "/again").status == 200
    for peer in server.connections:
        assert peer.ended.wait(BOUND)
    assert len(speaking(server.connections)) == outcomes["sent"] + 1  # of the refused calls none has said a word


# --- wrong connection reuse -------------------------------------------------------------------------------------------


def tell_the_client(peer: Peer) -> None:
    """Answer every request with the name in the client's certificate."""
    while True:
        peer.read_request()
        assert isinstance(peer.sock, ssl.SSLSocket)
        certificate: Any = peer.sock.getpeercert()
        peer.send(Respond(body=dict(certificate["subjectAltName"])["DNS"].encode()).encode())


@listed
def test_cve_2016_5420_client_certificates_never_share_a_connection(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    context = server_context()
    authority().configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    server = scripted_server(default=tell_the_client, ssl_context=context)
    contexts = {name: client_context() for name in ("alice.test", "bob.test")}
    for name, own in contexts.items():
        authority().issue_cert(name).configure_cert(own)
    with contextlib.ExitStack() as stack:
        pools = {name: stack.enter_context(new_pool(server, ssl_context=own)) for name, own in contexts.items()}
        managers = {
            name: stack.enter_context(PoolManager(ssl_context=own, registry=None)) for name, own in contexts.items()
        }
        for _ in range(2):
            for name, pool in pools.items():
                audit.watch(pool)
                assert pool.request("GET", "/").data == name.encode()
            for name, manager in managers.items():
                assert manager.request("GET", f"{server.url}/").data == name.encode()
    assert server.accepted == 4


@listed
def test_cve_2021_22924_context_lives_as_long_as_its_pool(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server(default=SERVE, ssl_context=server_context())
    context = client_context()
    alive = weakref.ref(context)
    with new_pool(server, ssl_context=context) as pool, PoolManager(ssl_context=context, registry=None) as manager:
        del context
        gc.collect()
        assert alive() is pool.config.ssl_context is manager.config.ssl_context
        assert pool.request("GET", "/mine").data == b"/mine"
        assert manager.request("GET", f"{server.url}/mine").data == b"/mine"
    for name, tree in core_trees().items():
        called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call)
                  if isinstance(node.func, ast.Name)}  # fmt: skip
        assert "id" not in called, f"{name} takes the address of an object for its identity"


# What makes another connection of it: the settings of one pool, and those of the other.
PROXY_AND_ORIGIN = keep_alive_script(lambda request: Respond(body=request.target.encode()).encode(request.method))
# A setting that is missing here gets its value from its type, so that no new one is forgotten.
OTHER_SETTINGS: Final[dict[str, Any]] = {
    "timeout": Timeout(read=7.0),
    "max_waiters": 7,
    "leak_after": 7.0,
    "retry": Retry(attempts=2),
    "max_requests": 7,
    "source_address": ("127.0.0.2", 0),
    "socket_options": ((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),),
    "limits": Limits(fields=50),
    "name": "other",
    "proxy_headers": {"Proxy-Authorization": "Basic b3RoZXI="},
    "server_hostname": "localhost",
    "clock": lambda: 1.0,
    "exemplar": dict,
    "registry": "a registry of its own",
    "proxy": "the server",
    "ssl_context": "a context of its own",
    "uds": "a path",
}


def other_value(setting: str, value: object) -> Any:
    if setting in OTHER_SETTINGS:
        return OTHER_SETTINGS[setting]
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    raise AssertionError(f"PoolConfig.{setting} is new: give it another value here")


@listed
@pytest.mark.parametrize("setting", [*PoolConfig().as_dict()])
def test_cve_2022_27782_pools_that_differ_in_one_setting_never_share_a_connection(
    setting: str, scripted_server: ServerFactory, tmp_path: Path, audit: ResourceAudit
) -> None:
    is_secure = setting in {"ssl_context", "server_hostname"}
    context = server_context("127.0.0.1", "localhost") if is_secure else None
    server = scripted_server(default=PROXY_AND_ORIGIN, ssl_context=context)
    other_server = server
    base: dict[str, Any] = {"registry": None, "ssl_context": client_context() if is_secure else None}
    other = other_value(setting, getattr(PoolConfig(), setting))
    if setting == "proxy_headers":
        base["proxy"] = f"http://{server.host}:{server.port}"
    elif setting == "proxy":
        other = f"http://{server.host}:{server.port}"
    elif setting == "ssl_context":
        other = client_context()
    elif setting == "registry":
        other = CollectorRegistry()
    elif setting == "uds":
        other = str(tmp_path / "socket")
        other_server = scripted_server(default=PROXY_AND_ORIGIN, uds=other)
    with (
        PoolManager(config=PoolConfig(**base)) as first,
        PoolManager(config=PoolConfig(**{**base, setting: other})) as second,
    ):
        for manager in (first, second, first, second):
            assert manager.request("GET", f"{server.url}/mine").data == b"/mine"
        assert first.pool(server.url) is not second.pool(server.url)
        with pytest.raises(AttributeError):
            setattr(first.config, setting, other)
    if other_server is server:
        assert server.accepted == 2
    else:
        assert (server.accepted, other_server.accepted) == (1, 1)


@listed
def test_cve_2023_27536_no_call_can_ask_for_another_kind_of_connection() -> None:
    # What makes connections different stands in the settings of a pool alone, which never change: there is no
    # argument of a call that a comparison could leave out.  PoolManager.pool() takes some, and each makes another pool:
    # test_manager.py, test_each_setting_of_a_route_leads_to_a_pool_of_its_own.
    harmless = {"self", "method", "url", "target", "body", "headers", "timeout", "retry"}
    for lender in (PoolManager, ConnectionPool):
        for name in ("request", "stream", "connection", "pool", "acquire"):
            if hasattr(lender, name):
                parameters = set(inspect.signature(getattr(lender, name)).parameters)
                assert parameters - ({"route"} if name == "pool" else set()) <= harmless, (lender, name)


@listed
def test_cve_2024_35195_connection_without_verification_is_not_used_where_it_is_asked_for(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server(default=SERVE, ssl_context=server_context("elsewhere.test"))
    with (
        PoolManager(ssl_context=trusting_context(), registry=None) as trusting,
        PoolManager(ssl_context=client_context(), registry=None) as verifying,
    ):
        assert trusting.request("GET", f"{server.url}/mine").data == b"/mine"
        for _ in range(2):
            with pytest.raises(ssl.SSLCertVerificationError):
                verifying.request("GET", f"{server.url}/mine")
        assert trusting.request("GET", f"{server.url}/again").data == b"/again"
    assert [request.target for request in server.requests] == ["/mine", "/again"]
    assert server.accepted == 3


@listed
def test_cve_2024_35195_context_that_is_tightened_holds_for_every_connection_opened_afterwards(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server(default=SERVE, ssl_context=server_context("elsewhere.test"))
    context = trusting_context()
    with new_pool(server, ssl_context=context) as pool:
        audit.watch(pool)
        assert pool.request("GET", "/mine").data == b"/mine"
        context.verify_mode = ssl.CERT_REQUIRED
        context.check_hostname = True
        authority().configure_trust(context)
        # Connections that are open were made by what the context said then; this is how one gets rid of them.
        assert pool.prune(everything=True) == 1
        for _ in range(2):
            with pytest.raises(ssl.SSLCertVerificationError):
                pool.request("GET", "/mine")
        context.check_hostname = False
        assert pool.request("GET", "/again").data == b"/again"


@listed
def test_cve_2022_27775_zones_of_an_address_have_connections_of_their_own(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server(default=SERVE, host="::1")
    found = (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("::1", server.port, 0, 0))
    with PoolManager(registry=None) as manager, pytest.MonkeyPatch.context() as patched:
        # No machine has two links to try this on; who is asked for must differ, wherever it leads.
        patched.setattr(socket, "getaddrinfo", lambda *_, **__: [found])
        for zone in ("eth0", "eth1", "eth0", "eth1"):
            assert manager.request("GET", f"http://[fe80::1%{zone}]:{server.port}/mine").data == b"/mine"
        assert len(manager.pools()) == 2
    assert server.accepted == 2
    assert {request.field("Host") for request in server.requests} == {f"[fe80::1]:{server.port}"}


def credentials_seen(server: ScriptedServer) -> list[tuple[str | None, list[str]]]:
    """Return each connection's credentials for the proxy, and what was asked for over it."""
    return [
        (peer.requests[0].field("Proxy-Authorization"), [request.target for request in peer.requests[1:]])
        for peer in server.connections
    ]


@listed
def test_cve_2026_3784_credentials_for_a_proxy_have_tunnels_of_their_own(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    proxy = scripted_server(default=PROXY_AND_ORIGIN)
    url = f"http://{proxy.host}:{proxy.port}"
    with (
        PoolManager(proxy=url, proxy_headers={"Proxy-Authorization": "Basic YQ=="}, registry=None) as alice,
        PoolManager(proxy=url, proxy_headers={"Proxy-Authorization": "Basic Yg=="}, registry=None) as bob,
        PoolManager(proxy=url.replace("http://", "http://carol:pass@"), registry=None) as carol,
        PoolManager(proxy=url, registry=None) as nobody,
    ):
        for _ in range(2):
            for name, manager in [("alice", alice), ("bob", bob), ("carol", carol), ("nobody", nobody)]:
                assert manager.request("GET", f"http://origin.test/{name}").data == f"/{name}".encode()
    assert credentials_seen(proxy) == [
        ("Basic YQ==", ["/alice", "/alice"]),
        ("Basic Yg==", ["/bob", "/bob"]),
        ("Basic Y2Fyb2w6cGFzcw==", ["/carol", "/carol"]),
        (None, ["/nobody", "/nobody"]),
    ]


@listed
@pytest.mark.parametrize("kind", [ConnectionPool, PoolManager])
def test_cve_2026_3784_proxy_headers_that_the_caller_changes_afterwards_change_nothing(
    kind: type[ConnectionPool | PoolManager], scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    proxy = scripted_server(default=PROXY_AND_ORIGIN)
    headers = {"Proxy-Authorization": "Basic YQ=="}
    options: dict[str, Any] = {
        "proxy": f"http://{proxy.host}:{proxy.port}", "proxy_headers": headers, "registry": None
    }  # fmt: skip
    with ConnectionPool("origin.test", **options) if kind is ConnectionPool else PoolManager(**options) as made:
        headers["Proxy-Authorization"] = "Basic Yg=="
        target = "/mine" if isinstance(made, ConnectionPool) else "http://origin.test/mine"
        assert made.request("GET", target).data == b"/mine"
    assert credentials_seen(proxy) == [("Basic YQ==", ["/mine"])]


@listed
def test_cve_2026_3784_open_tunnel_takes_no_other_credentials(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    proxy = scripted_server(default=PROXY_AND_ORIGIN)
    conn = HTTPConnection(proxy.host, proxy.port, timeout=BOUND)
    conn.set_tunnel("origin.test", headers={"Proxy-Authorization": "Basic YQ=="})
    conn.request("GET", "/alice")
    assert conn.getresponse().read() == b"/alice"
    with pytest.raises(RuntimeError, match="established connection"):
        conn.set_tunnel("origin.test", headers={"Proxy-Authorization": "Basic Yg=="})
    conn.close()
    conn.set_tunnel("origin.test")
    conn.request("GET", "/nobody")
    assert conn.getresponse().read() == b"/nobody"
    conn.close()
    assert credentials_seen(proxy) == [("Basic YQ==", ["/alice"]), (None, ["/nobody"])]


# An exchange as (headers of the request, status and headers of its answer).
BOUND_AUTH: Final[dict[str, list[tuple[dict[str, str], Respond]]]] = {
    "cve_2016_0755 NTLM": [
        ({"Authorization": "NTLM TlRMTVNTUAAB"}, Respond(401, headers=[("WWW-Authenticate", "NTLM TlRMTVNTUAAC")])),
        ({"Authorization": "NTLM TlRMTVNTUAAD"}, Respond(200)),
    ],
    "cve_2015_3148 Negotiate": [
        ({"Authorization": "Negotiate YIIB"}, Respond(200, headers=[("WWW-Authenticate", "Negotiate oYG2")])),
    ],
    "cve_2026_5545 Negotiate without a word of it in the answer": [
        ({"authorization": "negotiate YIIB"}, Respond(200)),
    ],
    "cve_2015_3143 challenge alone": [
        ({}, Respond(401, headers=[("WWW-Authenticate", "Basic realm=a, NTLM TlRMTVNTUAAC")])),
    ],
}  # fmt: skip


@listed
@pytest.mark.parametrize("case", BOUND_AUTH)
def test_cve_2016_0755_connection_that_belongs_to_a_user_is_lent_to_nobody_else(
    case: str, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    steps = [step for _, answer in BOUND_AUTH[case] for step in (ExpectHead(), answer)]
    server = scripted_server([*steps, SERVE], default=SERVE)
    with new_pool(server) as pool:
        audit.watch(pool)
        with pool.connection() as conn:
            for headers, answer in BOUND_AUTH[case]:
                conn.request("GET", "/mine", headers=headers)
                assert answer_of(conn.getresponse()).status == answer.status
            assert server.accepted == 1  # such a handshake is worth nothing over two connections
        assert pool.request("GET", "/theirs").data == b"/theirs"
    assert server.accepted == 2


@listed
def test_cve_2026_1965_connection_of_a_whole_request_that_belongs_to_a_user_is_not_kept(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server(default=SERVE)
    with new_pool(server) as pool:
        audit.watch(pool)
        assert pool.request("GET", "/mine", headers={"Authorization": "Negotiate YIIB"}).data == b"/mine"
        assert pool.request("GET", "/theirs").data == b"/theirs"
    assert server.accepted == 2


@listed
@pytest.mark.parametrize("value", ["Bearer ntlm", "Basic bmVnb3RpYXRl", "Digest username=NTLM"])
def test_cve_2016_0755_other_credentials_leave_the_connection_to_everybody(
    value: str, to: To, server: ScriptedServer
) -> None:
    ask = to(server)
    assert ask("/mine", headers={"Authorization": value}).body == b"/mine"
    finish(ask, server, connections=1)


@listed
def test_cve_2026_4873_plain_connection_is_never_used_where_tls_is_asked_for(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server(SERVE, [StartTLS(server_context()), SERVE])  # both on one port
    with PoolManager(ssl_context=client_context(), registry=None) as manager:
        for _ in range(2):
            assert manager.request("GET", f"http://127.0.0.1:{server.port}/plain").data == b"/plain"
            assert manager.request("GET", f"https://127.0.0.1:{server.port}/secret").data == b"/secret"
    plain, encrypted = server.connections
    assert {request.target for request in plain.requests} == {"/plain"}
    assert {request.target for request in encrypted.requests} == {"/secret"}


@listed
def test_cve_2022_22576_credentials_of_one_request_are_not_in_the_next(to_all: To, server: ScriptedServer) -> None:
    ask = to_all(server)
    headers = {"Authorization": "Bearer secret", "Cookie": "session=secret", "X-Own": "1"}
    before = dict(headers)
    assert ask("/mine", headers=headers).body == b"/mine"
    assert headers == before
    assert ask("/posted", method="POST", body=b"x", headers=headers).body == b"/posted"
    assert headers == before
    finish(ask, server, connections=1)
    assert b"secret" in server.requests[0].head
    assert server.requests[2].head == (
        f"GET /again HTTP/1.1\r\nHost: {server.host}:{server.port}\r\nAccept-Encoding: identity\r\n\r\n".encode()
    )


SECRET: Final = {"Authorization": "Bearer secret", "Proxy-Authorization": "Basic secret"}


def failing_body() -> Iterator[bytes]:
    yield b"secret"
    raise LookupError("the body failed")


def begin(conn: HTTPConnection, **headers: str) -> None:
    conn.putrequest("POST", "/secret", skip_host=True)
    conn.putheader("Host", "secret.test")
    for name, value in {**SECRET, **headers}.items():
        conn.putheader(name, value)


def stop_at_endheaders(conn: HTTPConnection) -> None:
    begin(conn)
    conn.endheaders(cast("Any", object()))


def stop_at_length(conn: HTTPConnection) -> None:
    begin(conn, **{"Content-Length": "many"})
    conn.endheaders(b"secret")


def stop_at_body(conn: HTTPConnection) -> None:
    begin(conn, **{"Transfer-Encoding": "chunked"})
    conn.endheaders(failing_body(), encode_chunked=True)


def stop_at_send(conn: HTTPConnection) -> None:
    begin(conn, **{"Content-Length": "100"})
    conn.endheaders()
    conn.send(failing_body())


def stop_at_connect(conn: HTTPConnection) -> None:
    def refuse(*_: object) -> socket.socket:
        raise ConnectionRefusedError("refused")

    conn.close()
    connect, conn._create_connection = conn._create_connection, cast("Any", refuse)
    try:
        begin(conn)
        conn.endheaders()
    finally:
        conn._create_connection = connect


def interrupted(conn: HTTPConnection) -> None:
    begin(conn)
    raise KeyboardInterrupt


STOPS: Final[dict[str, Callable[[HTTPConnection], None]]] = {
    "request: header": lambda conn: conn.request("GET", "/secret", headers={**SECRET, "Bad": "a\n"}),
    "request: body": lambda conn: conn.request("POST", "/secret", failing_body(), SECRET),
    "putrequest": lambda conn: conn.putrequest("GET", "/secret secret"),
    "putheader": lambda conn: begin(conn, Bad="a\n"),
    "endheaders: no body": stop_at_endheaders,
    "endheaders: length": stop_at_length,
    "endheaders: body": stop_at_body,
    "send": stop_at_send,
    "connect": stop_at_connect,
    "interrupted": interrupted,
}


@listed
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("by", ["request", "steps"])
def test_cve_2026_6276_request_that_failed_halfway_leaves_nothing_for_the_next(
    by: str, stop: str, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server(default=[Repeat([ExpectHead(optional=True), Respond(body=b"hello")])])
    conn = HTTPConnection(server.host, server.port, timeout=BOUND)
    conn.request("GET", "/warm")
    assert conn.getresponse().read() == b"hello"
    with pytest.raises((ValueError, InvalidURL, TypeError, LookupError, OSError, KeyboardInterrupt)):
        STOPS[stop](conn)
    conn.close()
    if by == "request":
        conn.request("GET", "/again")
    else:
        conn.putrequest("GET", "/again")
        conn.endheaders()
    assert conn.getresponse().read() == b"hello"
    conn.close()
    last = server.connections[-1]
    assert last.ended.wait(BOUND)
    assert last.received == (
        f"GET /again HTTP/1.1\r\nHost: {server.host}:{server.port}\r\nAccept-Encoding: identity\r\n\r\n".encode()
    )


@listed
def test_cve_2026_9079_tunnel_that_is_asked_for_anew_has_none_of_the_fields_before(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    proxy = scripted_server([ExpectHead(method="CONNECT"), Respond(407, b"no")], default=PROXY_AND_ORIGIN)
    conn = HTTPConnection(proxy.host, proxy.port, timeout=BOUND)
    conn.set_tunnel("secret.test", 8080, SECRET)
    with pytest.raises(TunnelError):
        conn.request("GET", "/secret", headers=SECRET)
    with pytest.raises(ValueError, match="Invalid header"):
        conn.set_tunnel("secret.test", 8080, {**SECRET, "Bad": "a\n"})
    conn.set_tunnel("origin.test")
    conn.request("GET", "/again")
    assert conn.getresponse().read() == b"/again"
    conn.close()
    connect, request = proxy.peer(1).requests
    assert connect.head == b"CONNECT origin.test:80 HTTP/1.1\r\nHost: origin.test:80\r\n\r\n"
    assert request.head == b"GET /again HTTP/1.1\r\nHost: origin.test\r\nAccept-Encoding: identity\r\n\r\n"


@listed
def test_aiohttp_server_hostname_pools_for_different_names_never_share_a_connection(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server(default=SERVE, ssl_context=server_context("one.test"))
    with (
        new_pool(server, server_hostname="one.test") as one,
        new_pool(server, server_hostname="two.test") as two,
        new_pool(server) as own,
    ):
        audit.watch(one)
        assert one.request("GET", "/mine").data == b"/mine"
        for wrong in (two, own):
            audit.watch(wrong)
            with pytest.raises(ssl.SSLCertVerificationError):
                wrong.request("GET", "/mine")
        assert one.request("GET", "/again").data == b"/again"
    assert [peer.requests[-1].target for peer in server.connections if peer.requests] == ["/again"]


@listed
def test_cve_2021_22890_tls_sessions_are_never_resumed(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    context = server_context()
    server = scripted_server(default=SERVE, ssl_context=context)
    own = client_context()
    with new_pool(server, ssl_context=own) as pool:
        audit.watch(pool)
        for _ in range(3):
            with pool.connection() as conn:
                conn.request("GET", "/mine")
                assert conn.getresponse().read() == b"/mine"
                assert conn.sock.session_reused is False
                conn.close()
    conn = HTTPSConnection(server.host, server.port, timeout=BOUND, context=own)
    conn.request("GET", "/again")
    assert conn.getresponse().read() == b"/again"
    assert conn.sock.session_reused is False
    conn.close()
    assert context.session_stats()["hits"] == 0
    for name, tree in core_trees().items():
        handed_on = {word.arg for node in ast.walk(tree) if isinstance(node, ast.Call) for word in node.keywords}
        assert "session" not in handed_on, f"{name} hands a TLS session on: its key must be that of the pool"


@listed
def test_cve_2021_22901_handshake_that_failed_leaves_nothing_that_lets_the_next_one_pass(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    context = server_context("elsewhere.test")
    server = scripted_server(default=SERVE, ssl_context=context)
    with new_pool(server) as pool:
        audit.watch(pool)
        for _ in range(3):
            with pytest.raises(ssl.SSLCertVerificationError):
                pool.request("GET", "/secret")
    assert server.requests == []
    assert context.session_stats()["hits"] == 0
    with new_pool(server, server_hostname="elsewhere.test") as pool:
        assert pool.request("GET", "/again").data == b"/again"


# --- credentials ------------------------------------------------------------------------------------------------------


@listed
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("by", ["connection", "pool"])
def test_cve_2014_1830_credentials_for_the_proxy_never_reach_the_origin(
    by: str, scheme: str, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    tls = [StartTLS(server_context("origin.test"))] if scheme == "https" else []
    proxy = scripted_server([ExpectHead(method="CONNECT"), Send(OK + b"\r\n"), *tls, SERVE])
    fields = {"Proxy-Authorization": "Basic c2VjcmV0", "Proxy-Connection": "keep-alive", "X-Tunnel": "hidden"}
    if by == "pool":
        with ConnectionPool("origin.test", scheme=scheme, proxy=f"http://u:p@{proxy.host}:{proxy.port}",
                            proxy_headers=fields, ssl_context=client_context() if tls else None,
                            registry=None) as pool:  # fmt: skip
            for _ in range(2):
                assert pool.request("GET", "/mine").data == b"/mine"
    else:
        kind: Any = HTTPSConnection if tls else HTTPConnection
        conn = kind(proxy.host, proxy.port, timeout=BOUND, **({"context": client_context()} if tls else {}))
        conn.set_tunnel("origin.test", headers=fields)
        for _ in range(2):
            conn.request("GET", "/mine")
            assert conn.getresponse().read() == b"/mine"
        conn.close()
    connect, *requests = proxy.requests
    assert connect.field("Proxy-Authorization") == "Basic c2VjcmV0"
    assert len(requests) == 2
    for request in requests:
        assert {name for name, _ in request.fields} == {"Host", "Accept-Encoding"}
    seen = proxy.peer().received.removeprefix(connect.head).lower()
    assert b"proxy-" not in seen
    assert b"hidden" not in seen


@listed
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_cve_2015_3153_headers_for_the_origin_never_reach_the_proxy(
    scheme: str, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    tls = [StartTLS(server_context("origin.test"))] if scheme == "https" else []
    proxy = scripted_server([ExpectHead(method="CONNECT"), Send(OK + b"\r\n"), *tls, SERVE])
    with ConnectionPool("origin.test", scheme=scheme, proxy=f"http://{proxy.host}:{proxy.port}",
                        ssl_context=client_context() if tls else None, registry=None) as pool:  # fmt: skip
        audit.watch(pool)
        headers = {"Authorization": "Bearer secret", "Cookie": "secret", "X-Own": "secret"}
        assert pool.request("POST", "/mine?secret", b"secret", headers).data == b"/mine?secret"
    port = 443 if tls else 80
    authority_form = f"origin.test:{port}"
    assert proxy.requests[0].head == f"CONNECT {authority_form} HTTP/1.1\r\nHost: {authority_form}\r\n\r\n".encode()


@listed
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_cve_2018_20060_redirect_is_returned_and_not_followed(
    status: int, method: str, to_all: To, scripted_server: ServerFactory
) -> None:
    elsewhere = scripted_server(default=SERVE)
    location = f"{elsewhere.url}/stolen"
    server = scripted_server([ExpectHead(), Respond(status, headers=[("Location", location)]), SERVE])
    ask = to_all(server)
    body = b"secret" if method == "POST" else None
    answer = ask(method=method, body=body, headers={"Authorization": "Bearer secret", "Cookie": "secret"})
    assert answer.status == status
    assert dict(answer.fields)["Location"] == location
    finish(ask, server, connections=1)
    assert elsewhere.accepted == 0


LOOK_AROUND: Final = """
import os, sys

home = os.environ["HOME"]
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)

import pooledhttp
from pooledhttp import ConnectionPool, HTTPConnection, PoolManager

host, port = "127.0.0.1", int(sys.argv[1])
conn = HTTPConnection(host, port, timeout=10)
conn.request("GET", "/connection")
assert conn.getresponse().read() == b"/connection"
conn.close()
with ConnectionPool(host, port) as pool:
    assert pool.request("GET", "/pool").data == b"/pool"
with PoolManager() as manager:
    assert manager.request("GET", f"http://{host}:{port}/manager").data == b"/manager"
    with manager.stream("GET", f"http://{host}:{port}/stream") as response:
        assert response.read() == b"/stream"
print([name for name in opened if name.startswith(home)], "netrc" in sys.modules)
"""


def look_around(server: ScriptedServer, home: Path, **environment: str) -> str:
    """Use every public way in a process with this home and environment; return what it found worth telling."""
    path = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    # With a hook, CPython 3.11 loses threads that begin to be traced at the same moment: coverage stays out of it.
    untraced = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    ended = subprocess.run(
        [sys.executable, "-c", LOOK_AROUND, str(server.port)],
        env={**untraced, "PYTHONPATH": path, "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=BOUND * 3,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.strip()


@listed
def test_cve_2014_1829_nothing_is_read_from_the_home_directory(server: ScriptedServer, tmp_path: Path) -> None:
    for name in (".netrc", "_netrc", ".curlrc"):
        (tmp_path / name).write_text("machine 127.0.0.1 login alice password secret\ndefault login a password secret\n")
        (tmp_path / name).chmod(0o600)
    assert look_around(server, tmp_path, NETRC=str(tmp_path / ".netrc")) == "[] False"
    assert len(server.requests) == 4
    for request in server.requests:
        assert {name for name, _ in request.fields} == {"Host", "Accept-Encoding"}
    for name, tree in core_trees().items():
        assert not imported_names(tree) & {"netrc", "urllib.request", "requests"}, name


@listed
def test_cve_2026_6253_proxies_of_the_environment_are_not_used(
    server: ScriptedServer, scripted_server: ServerFactory, tmp_path: Path
) -> None:
    proxy = scripted_server(default=SERVE)
    url = f"http://alice:secret@{proxy.host}:{proxy.port}"
    names = ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
    look_around(server, tmp_path, **dict.fromkeys(names, url), no_proxy="", NO_PROXY="")
    assert [request.target for request in server.requests] == ["/connection", "/pool", "/manager", "/stream"]
    assert proxy.accepted == 0


@listed
def test_cve_2026_7168_there_is_no_way_yet_to_ask_for_the_proxies_of_the_environment() -> None:
    # With `trust_env` there comes NO_PROXY: leading dot, port, IPv6, CIDR, case and root dot need their tests then.
    settings_of_today = set(PoolConfig().as_dict())
    assert not [name for name in settings_of_today if "env" in name]
    assert "trust_env" not in inspect.signature(PoolManager).parameters


HIDDEN: Final = "hunter2"
HIDDEN_IN_BASE64: Final = "aHVudGVyMg"  # what "hunter2" begins with, as userinfo becomes Basic credentials
HIDDEN_HEADERS: Final = {
    "Authorization": f"Bearer {HIDDEN}",
    "Proxy-Authorization": f"Basic {HIDDEN}",
    "Cookie": f"session={HIDDEN}",
}


def assert_hidden(text: str) -> None:
    assert HIDDEN not in text
    assert HIDDEN_IN_BASE64 not in text


def told(fault: BaseException) -> str:
    """Return all that a log or a traceback shows of an error, its causes and its notes."""
    return "".join([str(fault), repr(fault), repr(vars(fault)), *traceback.format_exception(fault)])


@listed
def test_secrets_in_logs_stay_out_of_every_repr(server: ScriptedServer, audit: ResourceAudit) -> None:
    config = PoolConfig(proxy=f"http://{HIDDEN}:{HIDDEN}@proxy.test", proxy_headers=HIDDEN_HEADERS, registry=None)
    assert_hidden(repr(config) + str(config))
    with ConnectionPool("origin.test", config=config) as proxied, PoolManager(config=config) as manager:
        manager.pool("http://origin.test")
        for shown in (proxied, manager, manager.pools(), manager.stats(), proxied.stats(), proxied.explain()):
            assert_hidden(repr(shown) + str(shown))
    conn = HTTPConnection(server.host, server.port, timeout=BOUND)
    conn.request("GET", f"http://{HIDDEN}:{HIDDEN}@origin.test/", headers=HIDDEN_HEADERS)
    response = conn.getresponse()
    assert_hidden(repr(conn) + repr(response))
    response.read()
    conn.close()
    with new_pool(server) as pool:
        audit.watch(pool)
        with pool.stream("GET", "/", headers=HIDDEN_HEADERS) as streamed:
            assert_hidden(repr(streamed) + repr(pool) + pool.explain())
            streamed.read()
        whole = pool.request("GET", "/again", headers=HIDDEN_HEADERS)
        assert_hidden(repr(whole) + repr(pool.stats()))


def unread_response(pool: ConnectionPool) -> None:
    with pool.connection() as conn:
        conn.request("GET", f"//{HIDDEN}:{HIDDEN}@origin.test/", headers=HIDDEN_HEADERS)
        conn.getresponse()
        conn.request("GET", "/", headers=HIDDEN_HEADERS)


def acquire_timeout(pool: ConnectionPool) -> None:
    with pool.stream("GET", f"//{HIDDEN}:{HIDDEN}@origin.test/", headers=HIDDEN_HEADERS):
        pool.request("GET", "/", headers=HIDDEN_HEADERS, timeout=Timeout(acquire=0.05))


def refused_tunnel(pool: ConnectionPool) -> None:
    proxy = f"http://{HIDDEN}:{HIDDEN}@{pool.host}:{pool.port}"
    with ConnectionPool("origin.test", proxy=proxy, proxy_headers={"X-Key": HIDDEN}, registry=None) as proxied:
        proxied.request("GET", "/", headers=HIDDEN_HEADERS)


MISHAPS: Final[dict[str, Callable[[ConnectionPool], object]]] = {
    "UnreadResponse": unread_response,
    "AcquireTimeout": acquire_timeout,
    "TunnelError": refused_tunnel,
    "ReadTimeout": lambda pool: pool.request("GET", "/silent", headers=HIDDEN_HEADERS, timeout=Timeout(read=0.1)),
    "TotalTimeout": lambda pool: pool.request(
        "GET", "/silent", headers={**HIDDEN_HEADERS, "Host": "silent.test"}, timeout=0.1
    ),
    "BadStatusLine": lambda pool: pool.request("GET", "/noise", headers=HIDDEN_HEADERS),
    "IncompleteRead": lambda pool: pool.request("GET", "/short", headers=HIDDEN_HEADERS),
    "value": lambda pool: pool.request("GET", "/", headers={"Authorization": f"Bearer {HIDDEN}\n"}),
    "value of a cookie": lambda pool: pool.request("GET", "/", headers={"Cookie": f"{HIDDEN}\0"}),
    "value of another type": lambda pool: pool.request("GET", "/", headers={"Authorization": [HIDDEN]}),
    "URL as target": lambda pool: pool.request("GET", f"http://{HIDDEN}:{HIDDEN}@origin.test/"),
    "URL": lambda pool: PoolManager(registry=None).request("GET", f"http://{HIDDEN}:{HIDDEN}@origin.test/"),
    "malformed URL": lambda pool: PoolManager(registry=None).request("GET", f"http:/{HIDDEN}:{HIDDEN}@origin.test/"),
    "host": lambda pool: HTTPConnection(f"user:{HIDDEN}@origin.test"),
    "tunnel host": lambda pool: HTTPConnection("a.test").set_tunnel(f"user:{HIDDEN}@origin.test"),
    "tunnel header": lambda pool: HTTPConnection("a.test").set_tunnel("b.test", 80, {"X-Key": f"{HIDDEN}\n"}),
    "proxy": lambda pool: PoolConfig(proxy=f"http://user:{HIDDEN}@proxy.test/path"),
    "port of a proxy": lambda pool: PoolConfig(proxy=f"http://user:{HIDDEN}@proxy.test:x"),
    "scheme of a proxy": lambda pool: PoolConfig(proxy=f"socks5://user:{HIDDEN}@proxy.test"),
    "proxy header": lambda pool: PoolConfig(proxy_headers={"Proxy-Authorization": f"Basic {HIDDEN}\r\n"}),
    "target with a control": lambda pool: pool.request("GET", f"//{HIDDEN}:{HIDDEN}@origin.test/\n"),
}


def answer_badly(request: ReceivedRequest) -> bytes:
    if request.method == "CONNECT":
        return Respond(407, b"no").encode()
    if request.target == "/silent":
        return b""
    if request.target == "/noise":
        return b"noise\r\n\r\n"
    if request.target == "/short":
        return OK + b"Connection: close\r\nContent-Length: 9\r\n\r\nshort"
    return Respond(body=b"hello").encode()


@listed
@pytest.mark.parametrize("mishap", MISHAPS)
def test_secrets_in_logs_stay_out_of_every_error(
    mishap: str, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server(default=keep_alive_script(answer_badly))
    with new_pool(server) as pool:
        audit.watch(pool)
        with pytest.raises((ValueError, TypeError, OSError, HTTPException)) as caught:
            MISHAPS[mishap](pool)
        # Of the source lines in a traceback, those of this file name the secret's variable only.
        assert_hidden(told(caught.value))
        assert_hidden(pool.explain())
        assert pool.request("GET", "/again").data == b"hello"


@listed
def test_secrets_in_logs_stay_out_of_every_label_of_the_metrics(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    registry = CollectorRegistry()
    server = scripted_server(default=PROXY_AND_ORIGIN)
    proxy = f"http://{HIDDEN}:{HIDDEN}@{server.host}:{server.port}"
    with PoolManager(proxy=proxy, proxy_headers={"X-Key": HIDDEN}, registry=registry) as manager:
        manager.request("GET", f"http://origin.test/{HIDDEN}?key={HIDDEN}", headers=HIDDEN_HEADERS)
        with pytest.raises(InvalidURL):
            manager.request("GET", f"http://{HIDDEN}:{HIDDEN}@other.test/")
        shown = generate_latest(registry).decode()
    assert "origin.test:80" in shown
    assert_hidden(shown)


@listed
@pytest.mark.parametrize("way", ["request", "steps", "tunnel"])
def test_secrets_in_logs_stay_out_of_the_debug_output(
    way: str, scripted_server: ServerFactory, audit: ResourceAudit, capfd: pytest.CaptureFixture[str]
) -> None:
    server = scripted_server(default=PROXY_AND_ORIGIN)
    target = f"http://{HIDDEN}:{HIDDEN}@origin.test/mine"
    conn = HTTPConnection(server.host, server.port, timeout=BOUND)
    conn.set_debuglevel(1)
    if way == "tunnel":
        conn.set_tunnel("origin.test", headers=HIDDEN_HEADERS)
    if way == "steps":
        conn.putrequest("GET", target)
        for name, value in HIDDEN_HEADERS.items():
            conn.putheader(name.upper(), value)
        conn.endheaders()
    else:
        conn.request("GET", target, headers=HIDDEN_HEADERS)
    assert conn.getresponse().read().endswith(b"/mine")
    conn.close()
    shown = capfd.readouterr()
    assert "send: " in shown.out
    assert "origin.test/mine" in shown.out
    assert "reply: " in shown.out
    assert_hidden(shown.out)
    assert shown.err == ""
    assert f"Authorization: Bearer {HIDDEN}".lower() in server.heads[-1].decode().lower()  # it was sent all the same


@listed
def test_secrets_in_logs_are_neither_printed_nor_logged_unasked(
    to_all: To, server: ScriptedServer, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    ask = to_all(server)
    ask("/mine", headers=HIDDEN_HEADERS)
    finish(ask, server, connections=1)
    assert capfd.readouterr() == ("", "")
    assert_hidden(caplog.text)


# --- unbounded resources ----------------------------------------------------------------------------------------------


@listed
@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 " + b"x" * 65536 + b"\r\n\r\n",
        OK + b"X-Long: " + b"x" * 65536 + b"\r\n\r\n",
        CHUNKED + b"5;" + b"x" * 65536 + b"\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"0\r\nX-Long: " + b"x" * 65536 + b"\r\n\r\n",
    ],
    ids=["status line", "header", "chunk size", "trailer"],
)
def test_cve_2013_1752_line_over_the_limit_is_an_error(wire: bytes, to: To, scripted_server: ServerFactory) -> None:
    assert_refused(to, scripted_server, wire, LineTooLong)


def endless(beginning: bytes, repeated: bytes) -> Callable[[Peer], None]:
    """Send data for ever, so that no silence ends it."""

    def send_on(peer: Peer) -> None:
        peer.read_head()
        peer.send(beginning)
        while True:
            peer.send(repeated * (1 + 16384 // len(repeated)))

    return send_on


def assert_ends_within_a_megabyte(
    to: To, scripted_server: ServerFactory, script: Callable[[Peer], None], error: type[Exception]
) -> None:
    server = scripted_server([script], default=SERVE)
    ask = to(server)
    tracemalloc.start()
    try:
        with pytest.raises(error) as caught:
            ask()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not isinstance(caught.value, TimeoutError)
    assert peak < 2 << 20  # the peer's share included
    assert server.peer().ended.wait(BOUND)
    finish(ask, server, connections=2)


@listed
@pytest.mark.parametrize(
    ("repeated", "error"),
    [(b"X: y\r\n", InvalidResponse), (b"X: " + b"y" * 8000 + b"\r\n", InvalidResponse), (b"y" * 100, LineTooLong)],
    ids=["many", "large", "one"],
)
def test_cve_2023_38039_endless_headers_end_within_the_limits(
    repeated: bytes, error: type[Exception], to: To, scripted_server: ServerFactory
) -> None:
    assert_ends_within_a_megabyte(to, scripted_server, endless(OK + b"A: ", repeated), error)


@listed
@pytest.mark.parametrize("interim", [b"100 Continue", b"102 Processing", b"103 Early Hints", b"199 Whatever"])
def test_cve_2021_3737_endless_interim_answers_end_within_the_limits(
    interim: bytes, to: To, scripted_server: ServerFactory
) -> None:
    repeated = b"HTTP/1.1 " + interim + b"\r\n\r\n"
    assert_ends_within_a_megabyte(to, scripted_server, endless(b"", repeated), InvalidResponse)


@listed
@pytest.mark.parametrize("repeated", [b"X: y\r\n", b"X: " + b"y" * 8000 + b"\r\n"], ids=["many", "large"])
def test_cve_2026_22815_endless_trailers_end_within_the_limits(
    repeated: bytes, to: To, scripted_server: ServerFactory
) -> None:
    beginning = CHUNKED + b"5\r\nhello\r\n0\r\n"
    assert_ends_within_a_megabyte(to, scripted_server, endless(beginning, repeated), InvalidResponse)


@listed
def test_go_65035_total_ends_what_trickles_within_every_other_limit(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    trickle = Trickle(b"HTTP/1.1 102 Processing\r\n\r\n" * 50, interval=0.02)
    server = scripted_server([ExpectHead(), trickle], default=SERVE)
    with new_pool(server) as pool:
        audit.watch(pool)
        with pytest.raises(TotalTimeout):
            pool.request("GET", "/first", timeout=Timeout(read=BOUND, total=0.2))
        assert pool.request("GET", "/again").data == b"/again"


@listed
def test_cve_2025_13836_promise_of_a_huge_body_costs_no_memory(to: To, scripted_server: ServerFactory) -> None:
    promise = OK + b"Content-Length: 1000000000000\r\n\r\n0123456789"
    server = scripted_server([ExpectHead(), Send(promise), Close()], default=SERVE)
    ask = to(server)
    tracemalloc.start()
    try:
        with pytest.raises(IncompleteRead) as caught:
            ask()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    assert caught.value.partial == b"0123456789"
    finish(ask, server, connections=2)


@listed
@pytest.mark.parametrize(
    "read",
    [
        lambda response: response.read(10**12),
        lambda response: response.read1(10**12),
        lambda response: [response.readline(10**12), response.readline()],
        list,
        lambda response: response.readinto(bytearray(20)) + response.readinto(bytearray(20)),
    ],
    ids=["read(n)", "read1(n)", "readline(n)", "lines", "readinto"],
)
def test_cve_2025_13836_promise_of_a_huge_body_costs_no_memory_however_it_is_read(
    read: Callable[[HTTPResponse], object], scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    # Two of them: one promises a length, the other one chunk.
    promises = [OK + b"Content-Length: 1000000000000\r\n\r\n0123456789", CHUNKED + b"E8D4A51000\r\n0123456789"]
    server = scripted_server(*[[ExpectHead(), Send(promise), Close()] for promise in promises], default=SERVE)
    conn = new_connection(server)
    for _ in promises:
        conn.request("GET", "/first")
        response = conn.getresponse()
        tracemalloc.start()
        try:
            with pytest.raises(IncompleteRead):
                read(response)
                response.read()  # where the first one delivered what had come
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1 << 20
    conn.request("GET", "/again")
    assert conn.getresponse().read() == b"/again"
    conn.close()


@listed
def test_cve_2023_39326_endless_chunk_extensions_end_within_the_limits(to: To, scripted_server: ServerFactory) -> None:
    repeated = b"1;" + b"x" * 1000 + b"\r\ny\r\n"
    assert_ends_within_a_megabyte(to, scripted_server, endless(CHUNKED, repeated), InvalidResponse)


@functools.cache
def bomb() -> bytes:
    """Return some kilobytes that stand for many megabytes, packed twice."""
    return zlib.compress(zlib.compress(bytes(50 << 20), 9), 9)


@listed
@pytest.mark.parametrize("coding", ["deflate, deflate", "gzip", ", ".join(["gzip"] * 50)])
def test_cve_2025_66471_packed_body_stays_packed(coding: str, to_all: To, scripted_server: ServerFactory) -> None:
    response = Respond(body=bomb(), headers=[("Content-Encoding", coding)])
    server = scripted_server([ExpectHead(), response, SERVE])
    ask = to_all(server)
    tracemalloc.start()
    try:
        assert ask().body == bomb()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20
    finish(ask, server, connections=1)
    assert server.requests[0].field("Accept-Encoding") == "identity"


@listed
def test_cve_2026_21441_draining_neither_unpacks_nor_reads_without_end(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    packed = Respond(body=bomb(), headers=[("Content-Encoding", "deflate, deflate")])
    wants_no_end = endless(CHUNKED, b"400\r\n" + b"x" * 1024 + b"\r\n")
    server = scripted_server([ExpectHead(), packed, *([] if len(bomb()) > 65536 else [wants_no_end])], default=SERVE)
    with new_pool(server, drain_seconds=BOUND) as pool:
        audit.watch(pool)
        for _ in range(2):
            tracemalloc.start()
            try:
                with pool.stream("GET", "/first"):
                    pass
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak < 2 << 20
        assert pool.request("GET", "/again").data == b"/again"
    assert server.accepted == 2


@listed
def test_cve_2025_66418_there_is_nothing_that_could_unpack() -> None:
    unpackers = {"zlib", "gzip", "bz2", "lzma", "zipfile", "brotli", "brotlicffi", "zstandard", "compression"}
    for name, tree in core_trees().items():
        assert not imported_names(tree) & unpackers, name


@listed
def test_cve_2026_34513_hundred_thousand_hosts_leave_no_more_than_the_bounds(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server(default=SERVE)
    with PoolManager(max_pools=5, registry=None) as manager:
        for number in range(100_000):
            manager.pool(f"http://h{number}.test/")
        assert len(manager.pools()) == len(manager.stats()) == 5
        held = [value for value in vars(manager).values() if hasattr(value, "__len__")]
        assert max(map(len, held)) <= 5 * 4  # whatever else it may remember
        assert manager.request("GET", f"{server.url}/again").data == b"/again"


@listed
def test_cve_2026_34513_thousand_hosts_leave_no_more_than_a_hundred_labels(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server(default=SERVE)
    registry = CollectorRegistry()
    with PoolManager(max_pools=5, registry=registry) as manager:
        for number in range(1000):
            manager.pool(f"http://h{number}.test/")
        assert manager.request("GET", f"{server.url}/again").data == b"/again"
        labels = {value for family in registry.collect() for sample in family.samples
                  for name, value in sample.labels.items() if name == "pool"}  # fmt: skip
    assert 5 <= len(labels) <= 101  # the hundredth and first is for all that came later


# --- linear time ------------------------------------------------------------------------------------------------------


def cpu_seconds(work: Callable[[], object], *, runs: int) -> float:
    """Return the least CPU time that this work has taken.

    It is the time of this thread alone, so that neither the peer's thread nor another process counts.
    """

    def once() -> float:
        started = time.thread_time()
        work()
        return time.thread_time() - started

    return min(once() for _ in range(runs))


# Less is mostly the clock's own grain, and what a call costs in any case.
MEASURABLE: Final = 0.002


def assert_linear(make: Callable[[int], Callable[[], object]], *, largest: int) -> None:
    """Twice the input takes twice the time if that is linear, four times if it is quadratic."""
    size = 16 * 1024
    while size < largest and cpu_seconds(make(size), runs=1) < MEASURABLE:
        size *= 2
    small, large = make(size), make(2 * size)
    attempts = []
    for _ in range(4):  # what is quadratic is so each time; a machine that is busy for a moment is not
        once = max(cpu_seconds(small, runs=3), MEASURABLE)
        twice = cpu_seconds(large, runs=3)
        attempts.append((once, twice))
        if twice < 3 * once:
            return
    pytest.fail(f"not linear at {size} bytes: {attempts}")


FILLINGS: Final = {
    "a": b"a",
    "nbsp": b"\xa0",
    "at": b"@",
    "space": b" ",
    "semicolon": b";",
    "comma": b",",
    "digit": b"1",
}
# Where the peer puts the filling.
FIELDS_OF_A_RESPONSE: Final[dict[str, bytes]] = {
    "reason": b"HTTP/1.1 200 %b\r\nContent-Length: 0\r\n\r\n",
    "status": b"HTTP/1.1 %b\r\n\r\n",
    "name": OK + b"%b: 1\r\nContent-Length: 0\r\n\r\n",
    "value": OK + b"X: %b\r\nContent-Length: 0\r\n\r\n",
    "Content-Length": OK + b"Content-Length: 1%b0\r\n\r\n",
    "Transfer-Encoding": OK + b"Transfer-Encoding: chunked%bchunked\r\n\r\n0\r\n\r\n",
    "Connection": OK + b"Connection: %bclose\r\nContent-Length: 0\r\n\r\n",
    "Keep-Alive": OK + b"Keep-Alive: timeout=%b5\r\nContent-Length: 0\r\n\r\n",
    "obs-fold": OK + b"X: 1\r\n %b\r\n \r\nContent-Length: 0\r\n\r\n",
    "chunk size": CHUNKED + b"0%b\r\n\r\n",
    "chunk extension": CHUNKED + b"0;%b\r\n\r\n",
    "trailer": CHUNKED + b"0\r\nX: %b\r\n\r\n",
}
ROOMY: Final = Limits(line_bytes=1 << 22, head_bytes=1 << 23, chunk_extension_bytes=1 << 22)


@listed
@pytest.mark.parametrize("filling", FILLINGS)
@pytest.mark.parametrize("field", FIELDS_OF_A_RESPONSE)
def test_cve_2021_33503_time_for_a_response_is_linear_in_each_field(
    field: str, filling: str, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    def respond(peer: Peer) -> None:
        length = int(peer.read_request().target[1:])
        if length:
            peer.send(FIELDS_OF_A_RESPONSE[field].replace(b"%b", FILLINGS[filling] * length))
        else:
            peer.send(Respond(body=b"hello").encode())

    server = scripted_server(default=respond)
    with new_pool(server, limits=ROOMY) as pool:
        audit.watch(pool)

        def make(length: int) -> Callable[[], object]:
            def ask() -> None:
                with contextlib.suppress(HTTPException, OSError):
                    pool.request("GET", f"/{length}")

            return ask

        assert_linear(make, largest=512 * 1024)
        assert pool.request("GET", "/0").data == b"hello"


PLACES_IN_A_CALL: Final[dict[str, Callable[[PoolManager, str], object]]] = {
    "method": lambda manager, text: manager.request(text + "\n", "http://origin.test/"),
    "target": lambda manager, text: manager.request("GET", f"http://origin.test/{text}\n"),
    "header name": lambda manager, text: manager.request("GET", "http://origin.test/", headers={text + "\n": "1"}),
    "header value": lambda manager, text: manager.request("GET", "http://origin.test/", headers={"X": text + "\n"}),
    "Content-Length": lambda manager, text: manager.request(
        "POST", "http://origin.test/", b"", {"Content-Length": text + "\n"}
    ),
    "host": lambda manager, text: manager.request("GET", f"http://{text}\n/"),
    "host of a connection": lambda manager, text: HTTPConnection(text + "\n"),
    "port": lambda manager, text: HTTPConnection(f"origin.test:{text}\n"),
    "IPv6": lambda manager, text: HTTPConnection(f"[{text}\n]"),
    "scheme": lambda manager, text: manager.request("GET", f"{text}\n"),
    "tunnel": lambda manager, text: HTTPConnection("proxy.test").set_tunnel(text + "\n"),
    "proxy": lambda manager, text: PoolConfig(proxy=f"http://{text}\n"),
    "fragment": lambda manager, text: manager.request("G T", f"http://origin.test/#{text}\n"),
}


@listed
@pytest.mark.parametrize("filling", FILLINGS)
@pytest.mark.parametrize("place", PLACES_IN_A_CALL)
def test_cve_2020_8492_time_to_refuse_a_call_is_linear_in_each_string(place: str, filling: str) -> None:
    refuse = PLACES_IN_A_CALL[place]
    with PoolManager(registry=None) as manager:

        def make(length: int) -> Callable[[], object]:
            text = FILLINGS[filling].decode("latin-1") * length

            def call() -> None:
                with pytest.raises((ValueError, InvalidURL)):
                    refuse(manager, text)

            return call

        assert_linear(make, largest=512 * 1024)


# --- framing ----------------------------------------------------------------------------------------------------------

POISON: Final = OK + b"Content-Length: 6\r\n\r\npoison"
FIRST: Final = OK + b"Content-Length: 5\r\n\r\nfirst"


@pytest.fixture(params=["http", "https"])
def tls(request: pytest.FixtureRequest) -> ssl.SSLContext | None:
    return server_context() if request.param == "https" else None


@listed
@pytest.mark.parametrize(
    "behind", [POISON, POISON[:-20], POISON[:1], b"\r\n", b"\0"], ids=["whole", "half", "byte", "empty line", "NUL"]
)
def test_cve_2026_48931_unsolicited_response_in_the_same_segment_reaches_nobody(
    behind: bytes, tls: ssl.SSLContext | None, to_all: To, scripted_server: ServerFactory
) -> None:
    server = scripted_server([ExpectHead(), Send(FIRST + behind), KeepOpen()], default=SERVE, ssl_context=tls)
    ask = to_all(server)
    assert ask().body == b"first"
    finish(ask, server, connections=2)


@listed
@pytest.mark.parametrize(
    "unasked",
    [POISON, POISON[:-20], POISON[:1], b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n"],
    ids=["whole", "half", "byte", "408"],
)
def test_cve_2026_48931_unsolicited_response_on_an_idle_connection_reaches_nobody(
    unasked: bytes, tls: ssl.SSLContext | None, to_all: To, scripted_server: ServerFactory
) -> None:
    is_idle, has_spoken = threading.Event(), threading.Event()
    script = [ExpectHead(), Send(FIRST), Stall(until=is_idle), Send(unasked), Signal(has_spoken), KeepOpen()]
    server = scripted_server(script, default=SERVE, ssl_context=tls)
    ask = to_all(server)
    assert ask().body == b"first"
    is_idle.set()
    assert has_spoken.wait(BOUND)
    finish(ask, server, connections=2)
    assert len(server.connections[0].requests) == 1


@listed
def test_ghsa_35p6_xmwp_9g52_unsolicited_response_within_a_lease_reaches_neither_its_borrower_nor_the_next(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server([ExpectHead(), Send(FIRST), KeepOpen()],
                             [ExpectHead(), Send(FIRST + POISON), KeepOpen()], default=SERVE)  # fmt: skip
    with new_pool(server) as pool:
        audit.watch(pool)
        with pool.connection() as conn:
            for wanted in (b"first", b"first", b"/third"):
                conn.request("GET", "/third")
                assert conn.getresponse().read() == wanted
                if conn.state is not State.CLOSED and wanted == b"first":
                    server.connections[0].sock.sendall(POISON)  # while it is idle within the lease
        assert pool.request("GET", "/again").data == b"/again"
        assert {reason: count for reason, count in pool.stats().closed.items() if count} == {
            "unsolicited": 1,
            "leftover": 1,
        }


@listed
@pytest.mark.parametrize("response", [FIRST, CHUNKED + b"5\r\nfirst\r\n0\r\n\r\n"], ids=["length", "chunked"])
def test_cve_2026_48931_end_right_behind_the_body_is_no_premature_close(
    response: bytes, tls: ssl.SSLContext | None, to_all: To, scripted_server: ServerFactory
) -> None:
    server = scripted_server([ExpectHead(), Send(response), Close()], default=SERVE, ssl_context=tls)
    ask = to_all(server)
    assert ask().body == b"first"
    assert server.peer().ended.wait(BOUND)
    finish(ask, server, connections=2)


@listed
def test_cve_2026_48931_tls_tickets_are_nobodys_answer_and_cost_no_connection(
    to_all: To, scripted_server: ServerFactory
) -> None:
    context = server_context()
    context.num_tickets = 20  # they come behind the handshake, and so are read with the first answer
    server = scripted_server(default=SERVE, ssl_context=context)
    ask = to_all(server)
    for number in range(3):
        assert ask(f"/{number}").body == f"/{number}".encode()
    assert server.accepted == 1


@listed
def test_cve_2026_48931_tls_tickets_on_a_connection_that_was_never_used_cost_at_most_another_one(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server(default=SERVE, ssl_context=server_context())
    with new_pool(server) as pool:
        audit.watch(pool)
        pool.release(pool.acquire())  # the tickets lie unread behind the handshake
        for _ in range(2):
            assert pool.request("POST", "/mine", b"x").data == b"/mine"
    assert server.accepted <= 2


@listed
@pytest.mark.parametrize(
    "refusal", [Respond(417), Respond(401, b"who?"), Respond(200, b"ok"), Respond(200, b"ok", chunked=True)],
    ids=["417", "401", "200", "200 chunked"],
)  # fmt: skip
def test_cve_2024_24791_connection_whose_body_was_never_sent_is_not_used_again(
    refusal: Respond, to: To, scripted_server: ServerFactory
) -> None:
    server = scripted_server([ExpectHead(body=False), Mark("refused"), refusal, KeepOpen()], default=SERVE)
    ask = to(server)
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    assert ask("/upload", method="POST", body=smuggled, headers={"Expect": "100-continue"}).status == refusal.status
    assert server.peer().ended.wait(BOUND)
    assert server.connections[0].received_since("refused") == b""
    finish(ask, server, connections=2)


@listed
def test_cve_2024_24791_connection_whose_body_was_asked_for_and_sent_is_used_again(
    to: To, scripted_server: ServerFactory
) -> None:
    server = scripted_server([ExpectHead(body=False), Send(b"HTTP/1.1 100 Continue\r\n\r\n"), ExpectBody(),
                              Respond(body=b"ok"), SERVE])  # fmt: skip
    ask = to(server)
    assert ask("/upload", method="POST", body=b"wanted", headers={"Expect": "100-continue"}).body == b"ok"
    assert server.connections[0].requests[0].body == b"wanted"
    finish(ask, server, connections=1)


BAD_CHUNKS: Final[dict[str, bytes]] = {
    "cve_2025_43859 other bytes behind the data": b"5\r\nhelloXX0\r\n\r\n",
    "cve_2025_43859 longer than its size": b"5\r\nhello, world\r\n0\r\n\r\n",
    "cve_2025_43859 bare LF behind the data": b"5\r\nhello\n0\r\n\r\n",
    "cve_2025_43859 bare CR behind the data": b"5\r\nhello\rX0\r\n\r\n",
    "cve_2025_22871 bare LF behind the size": b"5\nhello\r\n0\r\n\r\n",
    "cve_2025_22871 bare LF behind the last size": b"5\r\nhello\r\n0\n\r\n",
    "cve_2025_55315 bare LF in an extension": b"5;a=\nb\r\nhello\r\n0\r\n\r\n",
    "cve_2025_58056 bare LF behind an extension": b"5;a\nhello\r\n0\r\n\r\n",
    "cve_2025_58056 bare CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "cve_2025_58056 bare LF behind a trailer": b"5\r\nhello\r\n0\r\nX: 1\n\r\n",
    "cve_2025_58056 bare LF for the end": b"5\r\nhello\r\n0\r\n\n",
    "cve_2023_47627 sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "cve_2023_47627 minus": b"-5\r\nhello\r\n0\r\n\r\n",
    "cve_2023_47627 underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "cve_2024_23829 prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "cve_2024_23829 space before": b" 5\r\nhello\r\n0\r\n\r\n",
    "cve_2024_23829 empty": b"\r\nhello\r\n0\r\n\r\n",
    "pysec_2026_1109 digit outside ASCII": b"\xd9\xa5\r\nhello\r\n0\r\n\r\n",
    "pysec_2026_1109 digit of latin-1": b"\xb5\r\nhello\r\n0\r\n\r\n",
}  # fmt: skip


@listed
@pytest.mark.parametrize("case", BAD_CHUNKS)
def test_cve_2025_43859_broken_chunk_is_an_error_and_ends_the_connection(
    case: str, to: To, scripted_server: ServerFactory
) -> None:
    assert_refused(to, scripted_server, CHUNKED + BAD_CHUNKS[case], InvalidChunk)


NO_LENGTHS: Final = ["+5", "-5", "1_0", "0x5", "5.0", "5e0", "5 5", "5;5", "5, five", "\xd9\xa5", "\xb2", "five", '"5"']


@listed
@pytest.mark.parametrize("value", NO_LENGTHS)
def test_cve_2023_47627_what_is_no_length_is_not_believed(value: str, to: To, scripted_server: ServerFactory) -> None:
    head = OK + f"Content-Length: {value}\r\n\r\n".encode("latin-1")
    assert_read_to_the_end(to, scripted_server, head + b"hello, world", b"hello, world")


@listed
@pytest.mark.parametrize("fields", [b"Content-Length: 5, 5\r\n", b"Content-Length: 5\r\ncontent-length: 5\r\n",
                                    b"Content-Length: 05,5\r\n"])  # fmt: skip
def test_cve_2024_23829_equal_lengths_are_one(fields: bytes, to: To, scripted_server: ServerFactory) -> None:
    assert_reused(to, scripted_server, OK + fields + b"\r\nhello", b"hello")


@listed
@pytest.mark.parametrize("fields", [b"Content-Length: 5, 6\r\n", b"Content-Length: 6\r\nContent-Length: 5\r\n",
                                    b"Content-Length: 5\r\nX: y\r\ncontent-length: 6\r\n"])  # fmt: skip
def test_cve_2023_47641_different_lengths_are_an_error(fields: bytes, to: To, scripted_server: ServerFactory) -> None:
    assert_refused(to, scripted_server, OK + fields + b"\r\nhello!", InvalidResponse)


@listed
@pytest.mark.parametrize(
    "head",
    [
        OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 500\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["shorter length", "longer length", "HTTP/1.0"],
)
def test_cve_2023_47641_chunks_win_over_a_length_and_the_connection_ends(
    head: bytes, to: To, scripted_server: ServerFactory
) -> None:
    assert_never_reused(to, scripted_server, head + b"5\r\nhello\r\n0\r\n\r\n", b"hello")


@listed
@pytest.mark.parametrize(
    "coding", ["chunked, gzip", "chunkedchunked", "chunked, chunked", "xchunked", "chunked;q=1", '"chunked"', "gzip",
               "chunked\x0b", "chunked, identity", "identity"],
)  # fmt: skip
def test_cve_2022_32213_coding_that_does_not_end_in_chunked_is_read_to_the_end(
    coding: str, to: To, scripted_server: ServerFactory
) -> None:
    body = b"5\r\nhello\r\n0\r\n\r\n"
    head = OK + f"Transfer-Encoding: {coding}\r\n\r\n".encode()
    assert_read_to_the_end(to, scripted_server, head + body, body)


@listed
@pytest.mark.parametrize(
    "line",
    [b"X: a\rSet-Cookie: evil=1", b"X: a\0b", b"X\0: a", b"X\r: a", b"\rX: a", b"X: a\r\r"],
    ids=["CR in a value", "NUL in a value", "NUL in a name", "CR in a name", "CR at the beginning", "CR at the end"],
)
def test_response_splitting_nul_or_bare_cr_in_a_header_is_an_error(
    line: bytes, to: To, scripted_server: ServerFactory
) -> None:
    assert_refused(to, scripted_server, OK + line + b"\r\nContent-Length: 5\r\n\r\nhello", InvalidResponse)


@listed
@pytest.mark.parametrize("fold", [b"\r\n ", b"\r\n\t", b" \r\n \t "])
def test_response_splitting_continued_line_is_joined_by_one_space(
    fold: bytes, to: To, scripted_server: ServerFactory
) -> None:
    wire = OK + b"X: a" + fold + b"Set-Cookie: evil=1\r\nContent-Length: 5\r\n\r\nhello"
    answer = assert_reused(to, scripted_server, wire, b"hello")
    assert answer.fields == [("X", "a Set-Cookie: evil=1"), ("Content-Length", "5")]


@listed
@pytest.mark.parametrize("fields", [b"Transfer-Encoding: chunked\r\n", b"Content-Length: 50\r\n",
                                    b"Transfer-Encoding: gzip\r\n"])  # fmt: skip
@pytest.mark.parametrize("case", ["204", "304", "HEAD"])
def test_cpython_157951_answer_that_has_no_body_is_not_waited_for(
    case: str, fields: bytes, to: To, scripted_server: ServerFactory
) -> None:
    status = b"200 OK" if case == "HEAD" else f"{case} None".encode()
    wire = b"HTTP/1.1 " + status + b"\r\n" + fields + b"\r\n"
    assert_reused(to, scripted_server, wire, b"", method="HEAD" if case == "HEAD" else "GET")


@listed
def test_cpython_157951_interim_answer_has_no_body_whatever_its_fields_say(
    to: To, scripted_server: ServerFactory
) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"
    assert_reused(to, scripted_server, early + FIRST, b"first")


def open_tunnel(peer: Peer) -> None:
    peer.read_head()
    peer.send(OK + b"\r\n")
    peer.start_tls(server_context("origin.test"))
    SERVE(peer)


@listed
@pytest.mark.parametrize("by", ["connection", "pool"])
@pytest.mark.parametrize(
    "behind", [b"\x16\x03\x03\x00\x05hello", POISON, b"x", b"\r\n"], ids=["TLS record", "response", "byte", "line"]
)
def test_cve_2021_22947_plain_bytes_behind_the_answer_to_connect_end_the_connection_before_tls(
    behind: bytes, by: str, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    injecting = [ExpectHead(method="CONNECT"), Send(OK + b"Content-Length: 5\r\n\r\n" + behind), KeepOpen()]
    proxy = scripted_server(injecting, open_tunnel)
    if by == "pool":
        with ConnectionPool("origin.test", scheme="https", proxy=f"http://{proxy.host}:{proxy.port}",
                            ssl_context=client_context(), registry=None) as pool:  # fmt: skip
            audit.watch(pool)
            with pytest.raises(InvalidResponse, match="behind its answer to CONNECT"):
                pool.request("GET", "/secret")
            assert pool.request("GET", "/again").data == b"/again"
    else:
        conn = HTTPSConnection(proxy.host, proxy.port, timeout=BOUND, context=client_context())
        conn.set_tunnel("origin.test")
        with pytest.raises(InvalidResponse, match="behind its answer to CONNECT"):
            conn.request("GET", "/secret")
        conn.request("GET", "/again")
        assert conn.getresponse().read() == b"/again"
        conn.close()
    first = proxy.connections[0]
    assert first.ended.wait(BOUND)
    assert first.received == first.requests[0].head  # not even a ClientHello followed


@listed
def test_cve_2021_22947_plain_bytes_that_come_later_are_never_taken_for_what_was_encrypted(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    injecting = [ExpectHead(method="CONNECT"), Send(OK + b"\r\n"), Send(FIRST), KeepOpen()]
    proxy = scripted_server(injecting, open_tunnel)
    conn = HTTPSConnection(proxy.host, proxy.port, timeout=BOUND, context=client_context())
    conn.set_tunnel("origin.test")
    with pytest.raises((InvalidResponse, ssl.SSLError)):  # whether both pieces are there at once is up to the kernel
        conn.request("GET", "/secret")
    conn.request("GET", "/again")
    assert conn.getresponse().read() == b"/again"
    conn.close()
    assert b"secret" not in proxy.connections[0].received


# --- TLS --------------------------------------------------------------------------------------------------------------

# The names in a certificate of a trusted authority, and one for whom it does not hold.
WRONG_NAMES: Final[dict[str, tuple[list[x509.GeneralName], str]]] = {
    "cve_2013_2037 other name": ([x509.DNSName("elsewhere.test")], "origin.test"),
    "cve_2014_9365 longer name": ([x509.DNSName("origin.test.evil.test")], "origin.test"),
    "cve_2016_9015 part of the name": ([x509.DNSName("test")], "origin.test"),
    "cve_2019_11324 no name": ([], "origin.test"),
    "common name alone": ([], "nobody.test"),
    "common name beside another kind of name": ([x509.IPAddress(ipaddress.ip_address("127.0.0.9"))], "nobody.test"),
    "wildcard above": ([x509.DNSName("*.origin.test")], "origin.test"),
    "wildcard too deep": ([x509.DNSName("*.origin.test")], "a.b.origin.test"),
    "wildcard not at the left": ([x509.DNSName("a.*.test")], "a.origin.test"),
    "wildcard twice": ([x509.DNSName("*.*.test")], "a.origin.test"),
    "wildcard for all": ([x509.DNSName("*")], "origin.test"),
    "wildcard within a label": ([x509.DNSName("o*n.test")], "origin.test"),
    "cve_2023_28321 wildcard in an IDN": ([x509.DNSName("x*.test")], "xn--bcher-kva.test"),
    "cve_2023_28321 wildcard behind xn--": ([x509.DNSName("xn--*.test")], "xn--bcher-kva.test"),
    "cve_2023_28321 wildcard in an IDN, name outside ASCII": ([x509.DNSName("x*.test")], "b\xfccher.test"),
    "NUL behind the name": ([x509.DNSName("origin.test\0.evil.test")], "origin.test"),
    "address in a name": ([x509.DNSName("127.0.0.1")], "127.0.0.1"),
    "wildcard for an address": ([x509.DNSName("*.0.0.1")], "127.0.0.1"),
    "other address": ([x509.IPAddress(ipaddress.ip_address("127.0.0.2"))], "127.0.0.1"),
    "address for a name": ([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))], "localhost"),
    "URI": ([x509.UniformResourceIdentifier("https://origin.test/")], "origin.test"),
}


@pytest.fixture
def default_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the test's authority the only one that the system trusts, so that contexts made by default are tried."""
    path = tmp_path / "authorities.pem"
    authority().cert_pem.write_to_path(path)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))


def https_by_default(server: ScriptedServer, name: str, monkeypatch: pytest.MonkeyPatch) -> HTTPSConnection:
    """Make a connection without any TLS argument, for a name that leads to the server."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", server.address)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    return HTTPSConnection(name, server.port, timeout=BOUND)


@listed
@pytest.mark.usefixtures("default_authority")
@pytest.mark.parametrize("case", WRONG_NAMES)
@pytest.mark.parametrize("by", ["connection", "pool", "server_hostname", "tunnel"])
def test_cve_2014_9365_certificate_for_another_name_is_refused(
    by: str,
    case: str,
    scripted_server: ServerFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    audit: ResourceAudit,
) -> None:
    names, host = WRONG_NAMES[case]
    context = odd_certificate(tmp_path, *names, common_name="nobody.test")
    if by == "tunnel":
        proxy = scripted_server([ExpectHead(method="CONNECT"), Send(OK + b"\r\n"), StartTLS(context), SERVE])
        conn = HTTPSConnection(proxy.host, proxy.port, timeout=BOUND)
        conn.set_tunnel(host, 443)
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            conn.request("GET", "/secret")
        assert [request.method for request in proxy.requests] == ["CONNECT"]
        return
    server = scripted_server(default=SERVE, ssl_context=context)
    conn = https_by_default(server, host, monkeypatch)
    if by == "connection":
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            conn.request("GET", "/secret")
    else:
        pool_host, asked = (host, None) if by == "pool" else (server.host, conn.host)
        with ConnectionPool(pool_host, server.port, scheme="https", server_hostname=asked, registry=None) as pool:
            audit.watch(pool)
            with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
                pool.request("GET", "/secret")
    assert server.requests == []


RIGHT_NAMES: Final[dict[str, tuple[list[x509.GeneralName], str]]] = {
    "name": ([x509.DNSName("origin.test")], "origin.test"),
    "name in other case": ([x509.DNSName("ORIGIN.test")], "Origin.TEST"),
    "name with a root dot": ([x509.DNSName("origin.test")], "origin.test."),
    "one of several": ([x509.DNSName("elsewhere.test"), x509.DNSName("origin.test")], "origin.test"),
    "wildcard": ([x509.DNSName("*.origin.test")], "a.origin.test"),
    "wildcard for an IDN": ([x509.DNSName("*.origin.test")], "b\xfccher.origin.test"),
    "address": ([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))], "127.0.0.1"),
    "IDN": ([x509.DNSName("xn--bcher-kva.test")], "b\xfccher.test"),
}


@listed
@pytest.mark.usefixtures("default_authority")
@pytest.mark.parametrize("case", RIGHT_NAMES)
def test_cve_2014_9365_certificate_for_this_name_is_accepted(
    case: str, scripted_server: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, audit: ResourceAudit
) -> None:
    names, host = RIGHT_NAMES[case]
    server = scripted_server(default=SERVE, ssl_context=odd_certificate(tmp_path, *names))
    conn = https_by_default(server, host, monkeypatch)
    conn.request("GET", "/mine")
    assert conn.getresponse().read() == b"/mine"
    conn.close()


@listed
@pytest.mark.usefixtures("default_authority")
@pytest.mark.parametrize("case", ["expired", "self-signed", "unknown authority"])
def test_cve_2019_11324_certificate_that_does_not_hold_is_refused(
    case: str, scripted_server: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, audit: ResourceAudit
) -> None:
    name = x509.DNSName("origin.test")
    if case == "unknown authority":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("origin.test").configure_cert(context)
    else:
        context = odd_certificate(
            tmp_path, name, is_self_signed=case == "self-signed", days=-1 if case == "expired" else 1
        )
    server = scripted_server(default=SERVE, ssl_context=context)
    conn = https_by_default(server, "origin.test", monkeypatch)
    with pytest.raises(ssl.SSLCertVerificationError):
        conn.request("GET", "/secret")
    assert server.requests == []


@listed
def test_cve_2021_28363_tls_to_the_proxy_itself_is_refused_not_left_unverified(audit: ResourceAudit) -> None:
    for kind in (ConnectionPool, PoolManager):
        arguments = ("origin.test",) if kind is ConnectionPool else ()
        with pytest.raises(InvalidURL, match="TLS to the proxy itself is not supported"):
            kind(*arguments, proxy="https://proxy.test:3128", registry=None)


@listed
@pytest.mark.usefixtures("default_authority")
@pytest.mark.parametrize("spelling", ["0x7f000001", "0x7f.0.0.1", "2130706433", "017700000001", "0177.0.0.1", "127.1",
                                      "127.0.1"])  # fmt: skip
def test_urllib3_5029_odd_spelling_of_an_address_is_no_name_that_a_certificate_covers(
    spelling: str, scripted_server: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, audit: ResourceAudit
) -> None:
    # The resolver takes it for an address; to TLS it is a name like any other, for which no certificate is made.
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("127.0.0.1"), x509.DNSName("localhost")]
    server = scripted_server(default=SERVE, ssl_context=odd_certificate(tmp_path, *names))
    conn = https_by_default(server, spelling, monkeypatch)
    with pytest.raises(ssl.SSLCertVerificationError):
        conn.request("GET", "/secret")
    assert server.requests == []
    with PoolManager(registry=None) as manager:
        assert manager.pool(f"http://{spelling}/") is not manager.pool("http://127.0.0.1/")


def state_of_ssl() -> dict[str, object]:
    """Return what the ssl and socket modules hold for the whole process."""
    fresh = ssl.create_default_context()
    shown = ("verify_mode", "verify_flags", "check_hostname", "options", "minimum_version", "maximum_version",
             "post_handshake_auth", "hostname_checks_common_name", "keylog_filename", "security_level")  # fmt: skip
    names = {name: value for name, value in vars(ssl).items() if not name.startswith("__")}
    return {
        **names,
        "default timeout": socket.getdefaulttimeout(),
        "socket class": socket.socket,
        **{f"context.{name}": getattr(fresh, name) for name in shown},
    }


@listed
def test_cve_2025_14017_nothing_that_the_whole_process_shares_is_changed(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server(default=SERVE, ssl_context=server_context())
    before = state_of_ssl()
    own = [client_context(), trusting_context()]
    own_before = [(context.verify_mode, context.check_hostname, context.options) for context in own]
    failures: list[BaseException] = []

    def use(context: ssl.SSLContext | None) -> None:
        try:
            with new_pool(server, ssl_context=context) as pool:
                for number in range(3):
                    assert pool.request("GET", f"/{number}").data == f"/{number}".encode()
        except ssl.SSLCertVerificationError as fault:
            if context is not None:
                failures.append(fault)
        except BaseException as fault:
            failures.append(fault)
            raise

    # One that verifies, one that does not, and one that trusts the system alone, all at once.
    threads = [threading.Thread(target=use, args=(context,)) for context in (*own, None) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)
    assert failures == []
    assert state_of_ssl() == before
    assert [(context.verify_mode, context.check_hostname, context.options) for context in own] == own_before
    for name, tree in core_trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr != "setdefaulttimeout", name
            for target in getattr(node, "targets", []):
                owner = getattr(target, "value", None)
                assert not (isinstance(owner, ast.Name) and owner.id in {"ssl", "socket"}), name


@listed
@pytest.mark.parametrize(
    "wire",
    [OK + b"\r\nhalf of it", OK + b"Content-Length: 50\r\n\r\nhalf of it", CHUNKED + b"32\r\nhalf of it",
     CHUNKED + b"a\r\nhalf of it\r\n", CHUNKED + b"a\r\nhalf of it\r\n0\r\n"],
    ids=["to the end", "length", "within a chunk", "between chunks", "before the last line"],
)  # fmt: skip
def test_truncation_of_tls_is_an_error(wire: bytes, to: To, scripted_server: ServerFactory) -> None:
    script = [ExpectHead(), Send(wire), Close(close_notify=False)]
    server = scripted_server(script, default=SERVE, ssl_context=server_context())
    ask = to(server)
    with pytest.raises((IncompleteRead, ssl.SSLError)):
        ask()
    finish(ask, server, connections=2)


@listed
def test_truncation_of_tls_is_none_when_the_peer_said_goodbye(to: To, scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Send(OK + b"\r\nall of it"), Close()], default=SERVE,
                             ssl_context=server_context())  # fmt: skip
    ask = to(server)
    assert ask().body == b"all of it"
    finish(ask, server, connections=2)


# --- deadlocks --------------------------------------------------------------------------------------------------------


@listed
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # what is lost here is lost on purpose
def test_redis_py_1578_collecting_a_lost_lease_under_the_lock_of_its_pool_is_no_deadlock(
    server: ScriptedServer, audit: ResourceAudit
) -> None:
    with new_pool(server) as pool:
        audit.watch(pool)
        lost = [pool.acquire()]

        def collect() -> None:
            with pool._lock:
                lost.clear()
                gc.collect()

        collector = threading.Thread(target=collect, daemon=True)
        collector.start()
        collector.join(BOUND)
        assert not collector.is_alive()
        assert pool.request("GET", "/again").data == b"/again"
        assert pool.stats().leaked == 1


@listed
@pytest.mark.parametrize("timeout", ["5", -1, object(), float("nan")])
def test_urllib3_5059_malformed_timeout_costs_no_slot(
    timeout: Any, server: ScriptedServer, audit: ResourceAudit
) -> None:
    with new_pool(server) as pool:
        audit.watch(pool)
        for call in (
            lambda: pool.request("GET", "/", timeout=timeout),
            lambda: pool.stream("GET", "/", timeout=timeout).__enter__(),
            lambda: pool.acquire(timeout),
            lambda: pool.connection(timeout).__enter__(),
        ):
            with pytest.raises((TypeError, ValueError)):
                call()
        assert pool.stats().leased == 0
        assert pool.request("GET", "/again").data == b"/again"
