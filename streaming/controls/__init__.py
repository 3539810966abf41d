"""What is told of a customer, not by one: identity, consent, erasure. Events on a topic of their own.

`types` says what a control is, `decode` reads one, `apply` carries it out, `agent` does so in the worker. Every
control is a register that the last writer wins, by (ts, event_id): in whatever order and however often they
come, the state is the same, and a replay of the topic gives it again.
"""
