"""The embedded default: a yard that is rendered, and the small detector trained on it."""
