"""Validity gates (P0): may this block count? One small pure function each, before any statistics and blind to speed."""
