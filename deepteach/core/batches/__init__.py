"""Batches as loops have them: nested, numbered, trusted, in parts on ranks; what of them counts."""
