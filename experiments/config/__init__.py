"""The configuration: its schema, and what it means."""
