"""Scripts that maintain the repository; nothing in `src/` imports them."""
