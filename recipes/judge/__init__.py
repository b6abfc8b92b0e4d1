"""Makes the default weights of the cascade's judge."""
