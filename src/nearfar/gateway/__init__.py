"""HTTP adapters: Open Inference Protocol, detection, fleet, metrics. Their wire names live here alone."""
