"""The stream: events in from Kafka, live profiles out of Redis. Follow an event from `events` down."""
