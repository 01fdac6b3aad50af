"""Edge Agent: visual anomaly detection on the device, served over gRPC on a Unix socket."""
