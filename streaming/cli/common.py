"""What the commands about identity, consent and erasure share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click
import msgspec

from streaming.controls import send
from streaming.controls.store import ControlStore
from streaming.controls.types import Control, is_nobody
from streaming.events.types import Id
from streaming.settings import Settings

T = TypeVar("T")


def valid_id(customer_id: str) -> str:
    """
    Raises:
        click.BadParameter
    """
    try:
        return str(msgspec.convert(customer_id, Id))
    except msgspec.ValidationError:
        raise click.BadParameter("must be 1 to 128 characters, no control characters, no { or }") from None


def valid_person(customer_id: str) -> str:
    """An id that stands for somebody.

    Raises:
        click.BadParameter
    """
    if is_nobody(customer_id):
        raise click.BadParameter(f"{customer_id!r} stands for nobody: links of it would make one person of strangers")
    return valid_id(customer_id)


def run(settings: Settings, work: Callable[[ControlStore], Awaitable[T]]) -> T:
    """Do `work` with a store of its own."""

    async def with_store() -> T:
        async with ControlStore.open(settings) as store:
            return await work(store)

    return asyncio.run(with_store())


def order(settings: Settings, control: Control) -> None:
    """Send a control; a worker carries it out."""
    send.send(settings, control)
    click.echo("ordered; a worker carries it out", err=True)
