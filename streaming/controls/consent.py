"""Whether a profile may be used for a purpose. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from streaming.controls.types import Purpose
from streaming.errors import LimnerError
from streaming.profiles.view import Profile


class ConsentDenied(LimnerError):
    """The customer does not grant this purpose, in person or by the default in force."""

    def __init__(self, customer_id: str, purpose: Purpose) -> None:
        super().__init__(f"customer {customer_id!r} has not granted the purpose {purpose}")
        self.customer_id = customer_id
        self.purpose = purpose


def allowed(profile: Profile | None, purpose: Purpose, defaults: Mapping[str, bool]) -> bool:
    """Whether the customer grants `purpose`.

    Args:
        profile: None for a customer who is not known.
        defaults: purpose -> what counts for one who said nothing: `Settings.consent`; purposes not named: granted.
    """
    said = None if profile is None else profile.consent.get(purpose)
    return defaults.get(purpose, True) if said is None else said


def require(profile: Profile, purpose: Purpose, defaults: Mapping[str, bool]) -> Profile:
    """The profile, if it may be used for `purpose`.

    Raises:
        ConsentDenied
    """
    if not allowed(profile, purpose, defaults):
        raise ConsentDenied(profile.customer_id, purpose)
    return profile
