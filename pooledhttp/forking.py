"""Placeholder of the owner until the real room is there."""


def register(_: object) -> None:
    """Do nothing yet."""
