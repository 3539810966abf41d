"""The worker: Faust agents around the pipeline core.

`app` wires Faust, `take` cuts batches, `settle` does a batch (process, publish, merge) until it is done,
`publish` writes deltas and dead letters to Kafka, `health` answers /ready and /metrics.
"""
