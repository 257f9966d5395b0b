"""The gRPC gateway: `Recommend`, `GenerateTopItems`, `SimilarItems`."""
