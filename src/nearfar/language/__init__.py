"""Prompts: what may go where, who answers, near, far or both, and what it cost."""
