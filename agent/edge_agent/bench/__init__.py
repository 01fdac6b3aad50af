"""Measuring the agent on the device it runs on, beside the bare model."""
