"""Images in folders, lists and arrays, and how their pixels are read."""
