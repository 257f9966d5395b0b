"""A shop's own data: the documented format (docs/data-format.md), its validation, and adapters to it."""
