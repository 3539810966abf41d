"""Faust as limner needs it: three things that it has no setting for."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from functools import partial
from typing import Any, TypeVar

import faust
from faust.transport.drivers import aiokafka as driver

# How long a broker may hold back an answer to a fetch that has found nothing. Faust's own 1,500 ms does no harm
# on Kafka, which answers as soon as there is a record, but the embedded broker sits it out: an event's p50/p99 to
# the consumer was 110/216 ms at 500, 7/19 ms at 20. The price is 50 empty fetches a second of an idle worker.
FETCH_MAX_WAIT_MS = 20


T = TypeVar("T")


class _Thread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_MAX_WAIT_MS
        return consumer


class _Consumer(driver.Consumer):  # type: ignore[misc]
    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def wait_first(self, *coros: Any, **options: Any) -> Any:
        """Faust hands over each message through this, as a race with a rebalance and two ways of stopping: four
        tasks a message, a sixth of a worker's time. Handing over nearly always ends at its first step, and then
        there is no race to run."""
        if len(coros) != 2 or not asyncio.iscoroutine(coros[0]):
            return await super().wait_first(*coros, **options)
        handing_over, suspended = coros
        try:
            waits_for = handing_over.send(None)
        except StopIteration:
            suspended.close()
            return None
        return await super().wait_first(_rest(handing_over, waits_for), suspended, **options)


async def _rest(coroutine: Coroutine[Any, Any, T], waits_for: Any) -> T:
    return await _resumed(coroutine, waits_for)


@types.coroutine
def _resumed(coroutine: Coroutine[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """Go on with a coroutine that was stepped once by hand, and then gave `waits_for`."""
    while True:
        try:
            sent = yield waits_for
        except BaseException as error:  # noqa: BLE001  cancellation, which is the coroutine's to see
            step = partial(coroutine.throw, error)
        else:
            step = partial(coroutine.send, sent)
        try:
            waits_for = step()
        except StopIteration as end:
            result: T = end.value
            return result


class _Transport(driver.Transport):  # type: ignore[misc]
    Consumer = _Consumer


class App(faust.App):  # type: ignore[misc]
    """Without Faust's own statistics, which cost a fifth of a worker and which nobody reads: ours are in `metrics`."""

    def on_init_dependencies(self) -> Any:
        dependencies = super().on_init_dependencies()
        self.sensors.remove(self.monitor)
        return dependencies

    def _new_transport(self) -> _Transport:
        return _Transport(self.conf.broker_consumer, self)
