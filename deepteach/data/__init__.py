"""From files and arrays to the tensors of one problem."""
