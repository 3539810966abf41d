"""The SDK: profiles and audiences, read straight from Redis. Needs redis, msgpack and msgspec, nothing more."""

from streaming.client.aio import AsyncProfileClient
from streaming.client.calls import InvalidArgument, UnknownFacet
from streaming.client.sync import ProfileClient
from streaming.errors import LimnerError, StoreUnavailable
from streaming.profiles.view import LabelStrength, Orders, Profile, ProfileUnreadable

__all__ = [
    "AsyncProfileClient",
    "InvalidArgument",
    "LabelStrength",
    "LimnerError",
    "Orders",
    "Profile",
    "ProfileClient",
    "ProfileUnreadable",
    "StoreUnavailable",
    "UnknownFacet",
]
