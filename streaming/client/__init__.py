"""The SDK: profiles and audiences, read straight from Redis. Needs redis, msgpack and msgspec, nothing more.

`testing` has stand-ins for a caller's own tests, `features` makes a profile a ranking model's vector, and `tokens`
are what `wait_for` waits for.
"""

from streaming.client.aio import AsyncProfileClient
from streaming.client.audience import Audience
from streaming.client.errors import InvalidArgument, NotYetVisible, UnknownFacet
from streaming.client.explain import Contribution, ExplainedLabel, Explanation
from streaming.client.features import as_features
from streaming.client.sync import ProfileClient
from streaming.client.tokens import Token
from streaming.controls.consent import ConsentDenied
from streaming.errors import LimnerError, StoreUnavailable
from streaming.profiles.view import LabelStrength, Orders, Profile, ProfileUnreadable

__all__ = [
    "AsyncProfileClient",
    "Audience",
    "ConsentDenied",
    "Contribution",
    "ExplainedLabel",
    "Explanation",
    "InvalidArgument",
    "LabelStrength",
    "LimnerError",
    "NotYetVisible",
    "Orders",
    "Profile",
    "ProfileClient",
    "ProfileUnreadable",
    "StoreUnavailable",
    "Token",
    "UnknownFacet",
    "as_features",
]
