"""Fine-grained pruning: single weights become zero, shapes stay."""
