"""The CRM job: whom a campaign pushes what, and delivering it once."""
