"""Hot-path operations: one reference and one visible table of backends per op."""
