"""Applied to a model from outside: compile regions, later FSDP2, tensor and expert parallelism."""
