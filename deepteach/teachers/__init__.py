"""The methods: a teacher a file, what teachers read, and the names of the methods."""
