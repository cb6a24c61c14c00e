"""One run: its folder, its files, and what stages share."""
