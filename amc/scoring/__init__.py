"""Running a network on images, and the scores of what it returns."""
