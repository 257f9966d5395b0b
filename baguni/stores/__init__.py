"""Read and write what is kept in Redis."""
