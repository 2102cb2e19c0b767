"""What can go wrong with kept states."""

from griffinlm.errors import GriffinError


class StoreError(GriffinError):
    """A state that cannot be kept or given, or a store that cannot be used."""


class StateNotFoundError(StoreError):
    """The tenant has no such state or name: never made, deleted, or dropped to make room."""


class DamagedStateError(StoreError):
    """A kept state does not match its checksum. It is out of the store when this is raised."""


class NoRoomError(StoreError):
    """The disk is full."""


class SignatureError(StoreError):
    """Exported states that were changed, cut, made with another key, or belong to another model."""
