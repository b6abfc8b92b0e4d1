"""The recipe of the embedded near model: it answers questions about a small table of facts."""
