"""What a person looks at: terminal tables and the HTML report. Imports no torch."""
