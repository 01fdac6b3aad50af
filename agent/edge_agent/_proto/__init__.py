"""Generated from edge-agent.proto by proto/generate.py; do not edit."""
