"""Rows of cells: csv, parquet and frames, and how their cells are read."""
