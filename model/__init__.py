"""Text in, calibrated label probabilities out. Knows neither Kafka nor Redis."""
