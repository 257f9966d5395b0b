"""What is kept in Redis, and how it is read and written."""
