"""Files that a remote host runs as they are; they import nothing else of this package."""
