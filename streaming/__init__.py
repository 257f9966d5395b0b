"""Near-real-time updates: Kafka consumers that keep histories in Redis and items in Milvus as they are now."""
