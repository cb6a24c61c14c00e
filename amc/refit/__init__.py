"""New weights for layers that lost inputs: looked up during a search, or solved in forward order."""
