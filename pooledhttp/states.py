"""The states of a connection and what leads from one to the next: a literal table, and nothing else decides.

It is the state diagram of ``http.client`` less the two states in which a second request goes out before the first
response is read.  A pair that is missing from the table *is* the error, raised before a byte is written.
`HTTPConnection._advance` is the only writer of a connection's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from .hints import Final


class State(IntEnum):
    """Where a connection stands in its exchange."""

    CLOSED = 0
    IDLE = 1
    REQUEST_STARTED = 2
    REQUEST_SENT = 3
    UNREAD_RESPONSE = 4


class Event(IntEnum):
    """What can happen to a connection."""

    CONNECT = 0
    PUTREQUEST = 1
    ENDHEADERS = 2
    GETRESPONSE = 3
    BODY_END = 4  # complete, and the connection may serve another request
    BODY_END_CLOSE = 5  # complete, but it may not
    FAULT = 6
    CLOSE = 7


TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = {
    (State.CLOSED, Event.CONNECT): State.IDLE,
    (State.CLOSED, Event.PUTREQUEST): State.REQUEST_STARTED,  # it connects when the request is sent
    (State.IDLE, Event.CONNECT): State.IDLE,  # connects anew
    (State.IDLE, Event.PUTREQUEST): State.REQUEST_STARTED,
    (State.REQUEST_STARTED, Event.CONNECT): State.REQUEST_STARTED,
    (State.REQUEST_STARTED, Event.ENDHEADERS): State.REQUEST_SENT,
    (State.REQUEST_SENT, Event.GETRESPONSE): State.UNREAD_RESPONSE,
    (State.UNREAD_RESPONSE, Event.BODY_END): State.IDLE,
    (State.UNREAD_RESPONSE, Event.BODY_END_CLOSE): State.CLOSED,
    (State.CLOSED, Event.FAULT): State.CLOSED,  # it was closed under the call that failed
    (State.IDLE, Event.FAULT): State.CLOSED,
    (State.REQUEST_STARTED, Event.FAULT): State.CLOSED,
    (State.REQUEST_SENT, Event.FAULT): State.CLOSED,
    (State.UNREAD_RESPONSE, Event.FAULT): State.CLOSED,
    (State.CLOSED, Event.CLOSE): State.CLOSED,
    (State.IDLE, Event.CLOSE): State.CLOSED,
    (State.REQUEST_STARTED, Event.CLOSE): State.CLOSED,
    (State.REQUEST_SENT, Event.CLOSE): State.CLOSED,
    (State.UNREAD_RESPONSE, Event.CLOSE): State.CLOSED,
}


class Moves(dict[State, State]):
    """The table's column for an event: from each state to the one that follows."""

    def __init__(self, event: Event) -> None:
        super().__init__({state: following for (state, of), following in TRANSITIONS.items() if of is event})
        self.event = event


# Read once here: an attribute of an Enum class costs more than the look-up it is for.
CLOSED, IDLE, REQUEST_STARTED, REQUEST_SENT, UNREAD_RESPONSE = State
CONNECT, PUTREQUEST, ENDHEADERS, GETRESPONSE, BODY_END, BODY_END_CLOSE, FAULT, CLOSE = map(Moves, Event)
# A whole request on an open connection is both events in one.
REQUEST = Moves(Event.PUTREQUEST)
REQUEST.update({state: ENDHEADERS[following] for state, following in PUTREQUEST.items()})
del REQUEST[CLOSED]  # it has to connect in between
# A whole exchange begins with three in one.
EXCHANGE = Moves(Event.PUTREQUEST)
EXCHANGE.clear()
EXCHANGE.update({state: GETRESPONSE[following] for state, following in REQUEST.items()})
