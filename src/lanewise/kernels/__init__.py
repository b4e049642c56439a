"""Own fast implementations, one module per op and implementation, imported only when chosen."""
