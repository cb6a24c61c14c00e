"""What widths cost: in closed form, and counted by fvcore as a check."""
