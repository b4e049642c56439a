"""One lazy adapter per outside library."""
