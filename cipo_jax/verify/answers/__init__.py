"""Numbers and mathematics: reading an answer and comparing it."""
