"""Training from scratch and fine-tuning, with a resume to the same bytes."""
