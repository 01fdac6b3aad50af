"""From images and models to model packages that the agent serves."""
