"""The weights of the default router: how they were made."""
