"""Documents → tokens → packed rows: real text only, read from the machine, resumable and seeded."""
