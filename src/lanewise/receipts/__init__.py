"""The record: receipts, decisions and campaigns, their store and their comparison. Imports no torch."""
