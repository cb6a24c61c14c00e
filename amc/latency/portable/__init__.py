"""Files that are sent to a remote host as they are; they import nothing else of this package."""
