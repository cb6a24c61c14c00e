"""Which channels of a group go first, and what their loss costs."""
