"""Somebody's API as a runtime: any far end that speaks the OpenAI convention, described by a small file."""
