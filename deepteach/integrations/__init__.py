"""The package behind the interfaces of other libraries."""
