"""The demo: a small inspection set, rendered; a model fitted to it; an agent that judges it."""
