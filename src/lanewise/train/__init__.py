"""The child: builds everything from a resolved lane, trains, and writes one receipt."""
