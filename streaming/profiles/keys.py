"""The names of everything in Redis. Pure: no connection, no settings.

A customer's keys carry the id as hash tag, so that in a cluster all of one customer lives in one
slot and the merge script may touch them together. Audiences and half-lives belong to no customer.
"""

from __future__ import annotations


def profile_key(namespace: str, customer_id: str) -> bytes:
    """Where the profile (msgpack, see `schema`) of one customer stands."""
    return f"{namespace}:{{{customer_id}}}:p".encode()


def audience_key(namespace: str, facet: str, label: str) -> bytes:
    """The sorted set of the customers who show a label.

    Member: customer_id. Score: A = log2 of the undecayed sum of evidence, in half-lives since the
    Unix epoch, so that the weight at time T is 2^(A - T/half_life): the order never changes with time.
    """
    return f"{namespace}:a:{facet}/{label}".encode()


def half_lives_key(namespace: str) -> bytes:
    """The hash facet -> half-life in ms, needed to read an audience's scores."""
    return f"{namespace}:h".encode()
