"""Programs: finding one in a completion, running it, judging what came of it."""
