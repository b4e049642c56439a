"""Goodput, steps, memory, ceilings and pure statistics. Only `memory` and `ceilings` need torch, and import it late."""
