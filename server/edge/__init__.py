"""Who asks, and is the request well-formed: from protobuf to queries, and back."""
