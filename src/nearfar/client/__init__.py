"""The one place that decides and sends: gateway, `watch` and `run` all ask the fleet through a `Client`."""
