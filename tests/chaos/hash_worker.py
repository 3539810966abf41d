"""A real worker (Faust, Kafka, Redis) whose scorer is exact, so that profiles can be compared byte for byte."""

from __future__ import annotations

from streaming import logs, settings
from streaming.agents.run import run
from tests.fakes import HashScorer

if __name__ == "__main__":
    in_force = settings.load()
    logs.configure(in_force)
    run(in_force, HashScorer())
