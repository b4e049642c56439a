"""What is trained: lanes, patterns, features, topology, identity, parameters and FLOPs. Imports no torch."""
