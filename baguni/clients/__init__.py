"""Clients of Triton, Milvus, Kafka and the gateway."""
