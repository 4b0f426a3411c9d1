"""The whole system on one machine, from package registries alone."""
