"""Campaign side: plan, run, analyse, decide. Imports no torch."""
