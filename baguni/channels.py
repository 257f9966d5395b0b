"""How gRPC connections to the servers behave: one that broke is found out, and a server that comes back is found soon."""

RECONNECT = {"grpc.initial_reconnect_backoff_ms": 100, "grpc.max_reconnect_backoff_ms": 1_000}
"""gRPC alone waits ever longer: up to two minutes for a server that was away that long."""

# A connection that a router has forgotten is found out.
KEEPALIVE = {"grpc.keepalive_time_ms": 30_000, "grpc.keepalive_timeout_ms": 5_000}
UNLIMITED = {"grpc.max_send_message_length": -1, "grpc.max_receive_message_length": -1}
