"""From a network to its channel groups: layers, dependencies between them, walls, groups."""
