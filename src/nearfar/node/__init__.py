"""One machine's part: the agent (the only place with effects), the service processes it supervises, and telemetry."""
