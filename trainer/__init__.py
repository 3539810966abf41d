"""What fits and measures models. Knows the model, and neither Kafka nor Redis."""
