"""Typer verbs: parse, call one function, print. A file per verb group; heavy imports happen inside the verbs."""
